/* The two ways in: the boot processor's PVH entry and the SIPI entry of all others, both up to 64-bit C. */

#include "layout.h"

.set NOTE_TYPE_PHYS32_ENTRY, 18         /* Xen include/public/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY */

/* Intel SDM vol. 3, "Control Registers" and "Extended Feature Enable Register". */
.set CR0_PE, 1 << 0
.set CR0_ET, 1 << 4
.set CR0_PG, 1 << 31
.set CR4_PAE, 1 << 5
.set MSR_EFER, 0xc0000080
.set EFER_LME, 1 << 8

/* Intel SDM vol. 3, "4-Level Paging and 5-Level Paging": 2 MiB pages, which identity-map the first 4 GiB. */
.set PAGE_SIZE, 4096
.set PTE_PRESENT, 1 << 0
.set PTE_WRITABLE, 1 << 1
.set PTE_LARGE, 1 << 7
.set LARGE_PAGE, 2 << 20
.set GIBIBYTES, 4
.set ENTRY_SIZE, 8
.set ENTRIES_PER_TABLE, 512

/* What 8-bit APIC ids can name, but for the broadcast id and one for the IOAPIC. */
.set MAX_CPUS, 254

.set BOOT_STACK_SIZE, 8192
/* 1 KiB: an AP enters itself in a list, and the first of them answers interrupts. */
.set AP_STACK_SHIFT, 10

/* Goes on in the 64-bit code at \target. Called with paging off, in 16-bit or 32-bit code. */
.macro enter_long_mode target
    movl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $top_table, %eax
    movl %eax, %cr3
    movl $MSR_EFER, %ecx
    movl $EFER_LME, %eax
    xorl %edx, %edx
    wrmsr
    /* Also clears CD and NW, with which a CPU comes out of INIT. */
    movl $(CR0_PG | CR0_ET | CR0_PE), %eax
    movl %eax, %cr0
    ljmpl $CODE_SELECTOR, $\target
.endm

/* 64-bit code has no segments to speak of, but interrupts and iretq look at them. */
.macro load_data_segments
    movl $DATA_SELECTOR, %eax
    movl %eax, %ss
    movl %eax, %ds
    movl %eax, %es
.endm

.section .note.pvh, "a", @note
    .balign 4
    .long note_name_end - note_name
    .long note_value_end - note_value
    .long NOTE_TYPE_PHYS32_ENTRY
note_name:
    .asciz "Xen"
note_name_end:
    .balign 4
note_value:
    .long start
note_value_end:

.text

/*
 * PVH entry (Xen docs/misc/pvh.pandoc): 32-bit protected mode without paging, flat segments, ebx = address of
 * hvm_start_info, .bss is zero.
 */
.code32
.globl start
start:
    cli
    cld

    movl $(pointer_tables + (PTE_PRESENT | PTE_WRITABLE)), top_table
    movl $(directories + (PTE_PRESENT | PTE_WRITABLE)), %eax
    movl $pointer_tables, %edi
    movl $GIBIBYTES, %ecx
1:  movl %eax, (%edi)
    addl $PAGE_SIZE, %eax
    addl $ENTRY_SIZE, %edi
    loop 1b

    movl $(PTE_PRESENT | PTE_WRITABLE | PTE_LARGE), %eax
    movl $directories, %edi
    movl $(GIBIBYTES * ENTRIES_PER_TABLE), %ecx
2:  movl %eax, (%edi)
    addl $LARGE_PAGE, %eax
    addl $ENTRY_SIZE, %edi
    loop 2b

    lgdt gdt_register
    enter_long_mode boot_long_mode

.code64
boot_long_mode:
    load_data_segments
    movl $boot_stack_top, %esp
    movl %ebx, %edi
    call guest_main                     /* does not return */

/*
 * SIPI entry: real mode, cs:ip = TRAMPOLINE / 16 : 0. Copied there, so it has absolute addresses only. Real
 * mode does not reach further than 64 KiB, so the value of the table register is copied with it.
 */
.code16
.globl trampoline
trampoline:
    cli
    lgdtl %cs:(trampoline_gdt_register - trampoline)
    enter_long_mode ap_long_mode
    .balign 4
trampoline_gdt_register:
    .word gdt_end - gdt - 1
    .long gdt
.globl trampoline_end
trampoline_end:

/* The order of arrival gives an AP its stack. */
.code64
ap_long_mode:
    load_data_segments
    movl $1, %edi
    lock xaddl %edi, ap_arrivals
    cmpl $(MAX_CPUS - 1), %edi
    jae 3f
    leal 1(%rdi), %eax
    shll $AP_STACK_SHIFT, %eax
    leaq ap_stacks(%rax), %rsp
    call ap_main                        /* does not return */
3:  cli
    hlt
    jmp 3b

.section .rodata
.balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff            /* CODE_SELECTOR: execute, read, accessed, 64-bit */
    .quad 0x00cf93000000ffff            /* DATA_SELECTOR: read, write, accessed */
gdt_end:
gdt_register:
    .word gdt_end - gdt - 1
    .long gdt

.bss
.balign PAGE_SIZE
top_table:
    .skip PAGE_SIZE
pointer_tables:
    .skip PAGE_SIZE
directories:
    .skip GIBIBYTES * PAGE_SIZE
ap_stacks:
    .skip (MAX_CPUS - 1) << AP_STACK_SHIFT
.balign 16
boot_stack:
    .skip BOOT_STACK_SIZE
boot_stack_top:
ap_arrivals:
    .skip 4

.section .note.GNU-stack, "", @progbits
