/*
 * Fills every register it can, and looks again and again whether each still has its value; the general registers get
 * new values each round. The number of a check that fails says which register it was about:
 *   0x1NN  general register NN (in the order of `values`), 0x120 the flags
 *   0x2NN  entry NN of `msrs`
 *   0x3NN  debug register NN
 *   0x4NN  control register NN; 0x4f0 XCR0
 *   0x5NN  xmmNN
 *   0x6NN  entry NN of `apic`, 0x6ff the current count of the timer
 *   0x7NN  GDT, IDT, bases of FS and GS, task register
 *   0x8NN  the TSC went back
 */
#include "guest64.inc"
#include "state.inc"

#define APIC 0xfee00000
#define APIC_COUNT (APIC + 0x390)
#define APIC_INITIAL_COUNT (APIC + 0x380)
#define CODE 0x10
#define DATA 0x18
#define TASK 0x20
#define CR4_OSFXSR (1 << 9)
#define CR4_OSXSAVE (1 << 18)
/* DF and SF, ZF, AF, PF, CF, and the bit that is always set. */
#define FLAGS 0x4d7

    linux64_start
    mov %cr4, %rax
    or $CR4_OSFXSR, %rax
    mov %rax, %cr4
    mov $STATE_XSAVE_PORT, %edx
    in %dx, %al
    test $1, %al
    jz 1f
    mov %cr4, %rax
    or $CR4_OSXSAVE, %rax
    mov %rax, %cr4
    xor %ecx, %ecx
    xor %edx, %edx
    mov $3, %eax
    xsetbv
    movl $3, xcr0
1:
    /* Descriptor tables of its own, and a task. */
    mov $task, %eax
    mov %ax, gdt + TASK + 2
    shr $16, %eax
    mov %al, gdt + TASK + 4
    mov %ah, gdt + TASK + 7
    lgdt gdt_pointer
    lidt idt_pointer
    mov $TASK, %eax
    ltr %ax

    mov $msrs, %rsi
1:  mov (%rsi), %ecx
    test %ecx, %ecx
    jz 2f
    mov 8(%rsi), %eax
    mov 12(%rsi), %edx
    wrmsr
    add $16, %rsi
    jmp 1b
2:
    .irp number, 0, 1, 2, 3
    mov debug + 8 * \number, %rax
    mov %rax, %dr\number
    .endr
    mov debug + 8 * 6, %rax
    mov %rax, %dr6
    mov debug + 8 * 7, %rax
    mov %rax, %dr7
    mov cr2, %rax
    mov %rax, %cr2

    mov $apic, %rsi
1:  mov (%rsi), %edi
    test %edi, %edi
    jz 2f
    mov 4(%rsi), %eax
    mov %eax, (%rdi)
    add $8, %rsi
    jmp 1b
2:  mov $APIC_INITIAL_COUNT, %edi
    movl $-1, (%rdi)
    mov $APIC_COUNT, %edi
    mov (%rdi), %eax
    mov %eax, count
    mov cr8, %rax
    mov %rax, %cr8

    .irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqu vectors + 16 * \number, %xmm\number
    .endr
    .irp number, 0, 3, 4
    mov %cr\number, %rax
    mov %rax, cr\number
    .endr

round:
    /* New values, each other than all before. */
    mov $values, %rsi
    mov $0x9e3779b97f4a7c15, %rbx
    mov $16, %ecx
1:  add %rbx, (%rsi)
    rol $7, %rbx
    add $8, %rsi
    dec %ecx
    jnz 1b
    .irp register, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rsp
    mov value_\register, %\register
    .endr
    nop
    nop
    nop
    nop
    nop
    nop
    nop
    nop
    .irp register, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rsp
    cmp value_\register, %\register
    jne wrong_\register
    .endr

    mov $stack_top, %rsp
    pushq $FLAGS
    popfq
    nop
    nop
    nop
    nop
    pushfq
    pop %rax
    cld
    cmp $FLAGS, %rax
    mov $0x120, %ebx
    jne failed

    /* MSRs. */
    mov $msrs, %rsi
    mov $0x200, %ebx
1:  mov (%rsi), %ecx
    test %ecx, %ecx
    jz 2f
    rdmsr
    cmp 8(%rsi), %eax
    jne failed
    cmp 12(%rsi), %edx
    jne failed
    add $16, %rsi
    inc %ebx
    jmp 1b
2:
    .irp number, 0, 1, 2, 3, 6, 7
    mov %dr\number, %rax
    mov $(0x300 + \number), %ebx
    cmp debug + 8 * \number, %rax
    jne failed
    .endr
    .irp number, 0, 2, 3, 4, 8
    mov %cr\number, %rax
    mov $(0x400 + \number), %ebx
    cmp cr\number, %rax
    jne failed
    .endr
    cmpl $0, xcr0
    je 1f
    xor %ecx, %ecx
    xgetbv
    mov $0x4f0, %ebx
    cmp xcr0, %eax
    jne failed
1:
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqu %xmm\number, vector
    mov $(0x500 + \number), %ebx
    mov vector, %rax
    cmp vectors + 16 * \number, %rax
    jne failed
    mov vector + 8, %rax
    cmp vectors + 16 * \number + 8, %rax
    jne failed
    .endr

    /* The local APIC. */
    mov $apic, %rsi
    mov $0x600, %ebx
1:  mov (%rsi), %edi
    test %edi, %edi
    jz 2f
    mov (%rdi), %eax
    cmp 4(%rsi), %eax
    jne failed
    add $8, %rsi
    inc %ebx
    jmp 1b
    /* It counts down; far from the end it starts again. */
2:  mov $APIC_COUNT, %edi
    mov (%rdi), %eax
    mov $0x6ff, %ebx
    cmp count, %eax
    ja failed
    mov %eax, count
    cmp $0x40000000, %eax
    ja 3f
    mov $APIC_INITIAL_COUNT, %edi
    movl $-1, (%rdi)
    movl $-1, count
3:
    sgdt vector
    mov $0x700, %ebx
    mov vector, %rax
    cmp gdt_pointer, %rax
    jne failed
    sidt vector
    mov $0x701, %ebx
    mov vector, %rax
    cmp idt_pointer, %rax
    jne failed
    mov %fs:8, %rax
    mov $0x702, %ebx
    cmp fs_data + 8, %rax
    jne failed
    mov %gs:8, %rax
    mov $0x703, %ebx
    cmp gs_data + 8, %rax
    jne failed
    str %eax
    mov $0x704, %ebx
    cmp $TASK, %ax
    jne failed

    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    mov $0x800, %ebx
    cmp tsc, %rax
    jb failed
    mov %rax, tsc

    next_round

/* EBX: the check. */
failed:
    wrong %ebx

    .macro wrong_register number, register
wrong_\register:
    mov $(0x100 + \number), %ebx
    jmp failed
    .endm
    wrong_register 0, rax
    wrong_register 1, rbx
    wrong_register 2, rcx
    wrong_register 3, rdx
    wrong_register 4, rsi
    wrong_register 5, rdi
    wrong_register 6, rbp
    wrong_register 7, r8
    wrong_register 8, r9
    wrong_register 9, r10
    wrong_register 10, r11
    wrong_register 11, r12
    wrong_register 12, r13
    wrong_register 13, r14
    wrong_register 14, r15
    wrong_register 15, rsp

    .data
    .balign 16
values:
    .irp register, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rsp
value_\register:
    .quad 0
    .endr
vectors:
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    .quad 0x0123456789abcdef * (2 * \number + 1), 0xfedcba9876543210 - \number
    .endr
vector:
    .quad 0, 0

/*
 * Number, value: STAR, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE, FS_BASE, GS_BASE, SYSENTER_CS, _ESP and _EIP (32 bits, as on
 * AMD), PAT, MTRRs, the control of a machine check bank.
 */
msrs:
    .quad 0xc0000081, 0x0023001000000000
    .quad 0xc0000082, 0x00007f0123456780
    .quad 0xc0000083, 0x00007f0123456790
    .quad 0xc0000084, 0x00047700
    .quad 0xc0000102, 0x00007f0fedcba980
    .quad 0xc0000100, fs_data
    .quad 0xc0000101, gs_data
    .quad 0x174, 0x10
    .quad 0x175, 0x11223344
    .quad 0x176, 0x55667788
    .quad 0x277, 0x0007010600070406
    .quad 0x2ff, 0xc06
    .quad 0x200, 0xd0000000
    .quad 0x201, 0x00000000ff000800
    .quad 0x250, 0x0606060606060606
    .quad 0x400, 0xffffffffffffffff
    .quad 0

debug:
    .quad 0x11111000, 0x22222000, 0x33333000, 0x44444000, 0, 0, 0xffff0ff0, 0x400
cr0: .quad 0
cr2: .quad 0x00007f0badc0ffee
cr3: .quad 0
cr4: .quad 0
cr8: .quad 5
xcr0: .long 0

/* Address, value: spurious vector, logical destination, divide by 1, timer (one-shot, masked), LINT0, LINT1, error,
 * destination of the last interrupt command. */
apic:
    .long APIC + 0xf0, 0x1ff
    .long APIC + 0xd0, 0x5a000000
    .long APIC + 0x3e0, 0xb
    .long APIC + 0x320, 0x10040
    .long APIC + 0x350, 0x10041
    .long APIC + 0x360, 0x10042
    .long APIC + 0x370, 0x10043
    .long APIC + 0x310, 0x07000000
    .long 0
count: .long 0
rounds: .long 0
    .balign 8
tsc: .quad 0

    .balign 8
gdt:
    .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x0000890000000067, 0
gdt_pointer:
    .word 47
    .quad gdt
    .balign 8
idt_pointer:
    .word 4095
    .quad 0x00007f0011110000
    .balign 16
fs_data:
    .quad 1, 0x0f50f50f50f50f51
gs_data:
    .quad 2, 0x0650650650650652

    .bss
    .balign 16
task:
    .space 104
