/*
 * Arms the local APIC's timer by TSC_DEADLINE, waits for its interrupt, and arms it again. An interrupt that does not come
 * leaves it halted for ever; one that is early, or that comes when no deadline is armed, is a check that fails:
 *   1  early  2  not armed  3  the deadline is still there after its interrupt
 * Every second time it waits with interrupts off until the deadline has passed.
 */
#include "guest64.inc"
#include "state.inc"

#define APIC 0xfee00000
#define APIC_EOI (APIC + 0xb0)
#define APIC_SPURIOUS (APIC + 0xf0)
#define APIC_TIMER (APIC + 0x320)
#define TSC_DEADLINE_MODE (2 << 17)
#define TSC_DEADLINE 0x6e0
#define VECTOR 0x40
#define CODE 0x10
#define INTERRUPT_GATE 0x8e00
/* A deadline is one to sixteen times this in the future, in cycles of the TSC. */
#define CYCLES_STEP 40000
/* KVM lets the timer expire some microseconds early, and makes up for it unless the guest is moved just then. */
#define CYCLES_EARLY 20000

    linux64_start
    cli
    lgdt gdt_pointer
    mov $arrived, %eax
    mov %ax, idt + 16 * VECTOR
    movw $CODE, idt + 16 * VECTOR + 2
    movw $INTERRUPT_GATE, idt + 16 * VECTOR + 4
    shr $16, %eax
    mov %ax, idt + 16 * VECTOR + 6
    lidt idt_pointer
    mov $APIC_SPURIOUS, %edi
    movl $0x1ff, (%rdi)
    mov $APIC_TIMER, %edi
    movl $(TSC_DEADLINE_MODE | VECTOR), (%rdi)
    xor %r15d, %r15d

arm:
    /* With nothing armed, no interrupt may come. */
    sti
    mov $200, %ecx
1:  dec %ecx
    jnz 1b
    cli
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    mov %r15d, %ecx
    and $15, %ecx
    inc %ecx
    imul $CYCLES_STEP, %ecx, %ecx
    add %rcx, %rax
    mov %rax, %r14
    mov %rax, %rdx
    shr $32, %rdx
    mov $1, %r13d
    mov $TSC_DEADLINE, %ecx
    wrmsr
    inc %r15d
    test $1, %r15d
    jz 3f
2:  rdtsc
    shl $32, %rdx
    or %rdx, %rax
    cmp %r14, %rax
    jb 2b
3:  sti
4:  hlt
    jmp 4b

/* KVM's emulator has no IRETQ: it goes on from here. */
arrived:
    mov $stack_top, %rsp
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    mov $1, %ebx
    add $CYCLES_EARLY, %rax
    cmp %r14, %rax
    jb failed
    mov $2, %ebx
    test %r13d, %r13d
    jz failed
    xor %r13d, %r13d
    mov $TSC_DEADLINE, %ecx
    rdmsr
    or %edx, %eax
    mov $3, %ebx
    jnz failed
    mov $APIC_EOI, %edi
    movl $0, (%rdi)
    round_done
    jmp arm

failed:
    wrong %ebx

    .data
    .balign 8
gdt:
    .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .word 31
    .quad gdt
idt_pointer:
    .word 16 * (VECTOR + 1) - 1
    .quad idt

    .bss
    .balign 16
idt:
    .space 16 * (VECTOR + 1)
