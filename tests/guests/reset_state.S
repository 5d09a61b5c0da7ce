/*
 * Shows every register that it can read, changes all of them, shows them again, has the last CPU do the same and run on, and resets.
 * Where each life begins as the first one did, the first list of each CPU is the same in all of them.
 */
#include "guest.inc"
#include "smp.inc"

#define CODE 0x08
#define DATA 0x10
#define TABLE 0x18
#define APIC 0xfee00000
#define IOAPIC 0xfec00000
#define IOAPIC_ENTRY_4 0x18
#define PIC1_DATA 0x21
#define PIC2_DATA 0xa1
#define PIC1_ELCR 0x4d0
#define PIT_COMMAND 0x43
#define PIT_CHANNEL_0 0x40
#define SPEAKER 0x61
#define CR4_DE_PSE_OSFXSR (1 << 3 | 1 << 4 | 1 << 9)
/* No image is here, nor anything that the monitor writes. */
#define RAM 0x600000
/* Pages that KVM is asked to keep: clock, wall clock, stolen time, ends of interrupts, page faults. */
#define PAGES 0x700000
#define MSR_SIZE 20
#define WAIT 20000

    pvh_start
    stack
    lgdt gdt_pointer
    ljmp $CODE, $1f
1:  say "life\n"
    say_hex "ram ", RAM
    movl $0x12345678, RAM
    call show
    call show_chips
    call change
    call change_chips
    /* What KVM keeps for a guest it writes when that is entered: here, after many exits. */
    call show
    call show_chips
    start_last_cpu other
1:  pause
    cmpl $0, done
    je 1b
    say "end\n"
    reset

/* The last CPU. */
other:
    lgdt gdt_pointer
    ljmp $CODE, $1f
1:  mov $DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    call show
    call change
    call show
    movl $1, done
1:  lock incl RAM + 4
    pause
    jmp 1b

    serial_routines

.macro show_value name, value:vararg
    say_hex "\name ", \value
.endm

/* Clobbers everything. */
show:
    say "list\n"
    say_hex "counted ", RAM + 4
    mov %cr0, %ebp
    show_value "cr0", %ebp
    mov %cr2, %ebp
    show_value "cr2", %ebp
    mov %cr3, %ebp
    show_value "cr3", %ebp
    mov %cr4, %ebp
    show_value "cr4", %ebp
    .irp number, 0, 1, 2, 3, 6, 7
    mov %dr\number, %ebp
    show_value "dr\number", %ebp
    .endr
    .irp segment, cs, ds, es, fs, gs, ss
    mov %\segment, %ebp
    show_value "\segment", %ebp
    .endr
    sldt %ebp
    show_value "ldtr", %ebp
    sidt table_pointer
    movzwl table_pointer, %ebp
    show_value "idt limit", %ebp
    show_value "idt base", table_pointer + 2

    /* Present whatever the control register says. */
    mov %cr4, %ebp
    mov %ebp, %eax
    or $(1 << 9), %eax
    mov %eax, %cr4
    fxsave fpu
    mov %ebp, %cr4
    movzwl fpu, %ebp
    show_value "fcw", %ebp
    show_value "mxcsr", fpu + 24
    show_value "xmm0", fpu + 160

    .irp register, 0x20, 0x80, 0xd0, 0xe0, 0xf0, 0x320, 0x350, 0x360, 0x370, 0x380, 0x3e0
    show_value "apic \register", APIC + \register
    .endr

    mov $msrs, %edi
1:  cmpl $0, (%edi)
    je 2f
    call is_there
    jz 3f
    say "msr "
    mov 4(%edi), %eax
    call serial_hex
    mov 4(%edi), %ecx
    rdmsr
    mov %eax, %ebp
    say " "
    mov %edx, %eax
    call serial_hex
    mov %ebp, %eax
    call serial_hex
    say "\n"
3:  add $MSR_SIZE, %edi
    jmp 1b
2:
    .irp page, 0, 1, 2, 3, 4
    mov PAGES + 0x1000 * \page, %ebp
    or PAGES + 0x1000 * \page + 4, %ebp
    or PAGES + 0x1000 * \page + 8, %ebp
    or PAGES + 0x1000 * \page + 16, %ebp
    or PAGES + 0x1000 * \page + 24, %ebp
    /* Whether there is something: times differ. */
    neg %ebp
    sbb %ebp, %ebp
    show_value "page \page", %ebp
    .endr
    ret

/* Whether the MSR of the entry at EDI is there: not ZF. Clobbers all but EDI and ESI. */
is_there:
    cmpl $1, (%edi)
    je 1f
    mov (%edi), %eax
    xor %ecx, %ecx
    cpuid
    cmpl $7, (%edi)
    jne 2f
    test $2, %ebx
    ret
2:  mov 8(%edi), %ecx
    bt %ecx, %eax
    sbb %eax, %eax
    test %eax, %eax
    ret
1:  test %edi, %edi
    ret

change:
    mov $0x11111000, %eax
    mov %eax, %cr2
    mov $0x22222000, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $CR4_DE_PSE_OSFXSR, %eax
    mov %eax, %cr4
    mov %cr0, %eax
    or $(1 << 16), %eax
    mov %eax, %cr0
    .irp number, 0, 1, 2, 3
    mov $(0x4444000 + \number), %eax
    mov %eax, %dr\number
    .endr
    mov $0xffff4ff0, %eax
    mov %eax, %dr6
    mov $0x700, %eax
    mov %eax, %dr7
    mov $DATA, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov $TABLE, %eax
    lldt %ax
    lidt idt_pointer
    fxsave fpu
    xorw $0x300, fpu
    xorl $0x6000, fpu + 24
    xorl $0x5a5a5a5a, fpu + 160
    fxrstor fpu

    movl $0x20, APIC + 0x80
    movl $0x5a000000, APIC + 0xd0
    movl $0x1ff, APIC + 0xf0
    movl $0x0fffffff, APIC + 0xe0
    movl $0xb, APIC + 0x3e0
    movl $0x10040, APIC + 0x320
    movl $0x10041, APIC + 0x350
    movl $0x10042, APIC + 0x360
    movl $0x10043, APIC + 0x370
    movl $0x7fffffff, APIC + 0x380

    mov $msrs, %edi
1:  cmpl $0, (%edi)
    je 2f
    call is_there
    jz 3f
    mov 4(%edi), %ecx
    rdmsr
    xor 12(%edi), %eax
    xor 16(%edi), %edx
    wrmsr
3:  add $MSR_SIZE, %edi
    jmp 1b
2:  ret

/* What the machine has once. */
show_chips:
    in $PIC1_DATA, %al
    movzbl %al, %ebp
    show_value "pic1 mask", %ebp
    in $PIC2_DATA, %al
    movzbl %al, %ebp
    show_value "pic2 mask", %ebp
    mov $PIC1_ELCR, %edx
    in %dx, %al
    movzbl %al, %ebp
    show_value "pic1 levels", %ebp
    movl $IOAPIC_ENTRY_4, IOAPIC
    show_value "ioapic entry", IOAPIC + 0x10
    movl $0, IOAPIC
    show_value "ioapic id", IOAPIC + 0x10
    .irp channel, 0, 1, 2
    /* Read back the status, without the output, which depends on the time. */
    mov $(0xe0 | 2 << \channel), %al
    out %al, $PIT_COMMAND
    in $(PIT_CHANNEL_0 + \channel), %al
    movzbl %al, %ebp
    and $0x3f, %ebp
    show_value "pit \channel", %ebp
    .endr
    in $SPEAKER, %al
    movzbl %al, %ebp
    and $1, %ebp
    show_value "gate 2", %ebp
    ret

change_chips:
    mov $0x11, %al
    out %al, $0x20
    mov $0x40, %al
    out %al, $PIC1_DATA
    mov $4, %al
    out %al, $PIC1_DATA
    mov $1, %al
    out %al, $PIC1_DATA
    mov $0xfa, %al
    out %al, $PIC1_DATA
    mov $0xfb, %al
    out %al, $PIC2_DATA
    mov $PIC1_ELCR, %edx
    mov $0x20, %al
    out %al, %dx
    movl $IOAPIC_ENTRY_4, IOAPIC
    movl $0x18055, IOAPIC + 0x10
    movl $0, IOAPIC
    movl $0x07000000, IOAPIC + 0x10
    .irp channel, 0, 1, 2
    mov $(0x34 | \channel << 6), %al
    out %al, $PIT_COMMAND
    mov $0x34, %al
    out %al, $(PIT_CHANNEL_0 + \channel)
    out %al, $(PIT_CHANNEL_0 + \channel)
    .endr
    in $SPEAKER, %al
    xor $1, %al
    out %al, $SPEAKER
    ret

    .data
/* Where a bit tells that it is there: CPUID leaf, or 1 for always, MSR, bit of EAX (of EBX in leaf 7), what is changed. */
    .macro msr number, low, high, leaf=1, bit=0
    .long \leaf, \number, \bit, \low, \high
    .endm
    .balign 8
msrs:
    msr 0x1b, 0, 0
    msr 0x174, 0x10, 0
    msr 0x175, 0x11223344, 0
    msr 0x176, 0x55667788, 0
    msr 0x1a0, 1, 0
    msr 0x277, 0x00000400, 0
    msr 0x2ff, 0x400, 0
    msr 0x200, 0xd0000000, 0
    msr 0x201, 0xff000800, 0
    msr 0x250, 0x06060606, 0x06060606
    msr 0x400, -1, -1
    msr 0xc0000080, 1, 0
    msr 0xc0000081, 0, 0x00230010
    msr 0xc0000082, 0x23456780, 0x7f01
    msr 0xc0000083, 0x23456790, 0x7f01
    msr 0xc0000084, 0x47700, 0
    msr 0xc0000102, 0xfedcba98, 0x7f00
    msr 0x3b, 0x1000, 0, 7, 1
    msr 0x4b564d00, PAGES + 0x1000, 0, 0x40000001, 3
    msr 0x4b564d01, PAGES + 1, 0, 0x40000001, 3
    msr 0x4b564d02, PAGES + 0x4001, 0, 0x40000001, 4
    msr 0x4b564d03, PAGES + 0x2001, 0, 0x40000001, 5
    msr 0x4b564d04, PAGES + 0x3001, 0, 0x40000001, 6
    .long 0

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x0000820000000007
gdt_pointer:
    .word 31
    .long gdt
    .balign 4
    .word 0
idt_pointer:
    .word 0x7ff
    .long 0x33333000
    .balign 4
    .word 0
table_pointer:
    .word 0
    .long 0
    .balign 4
done:
    .long 0

    .bss
    .balign 16
fpu:
    .space 512
