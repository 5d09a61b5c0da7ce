/*
 * Finds the entropy device on the PCI bus and makes 64 requests of 16 bytes, each after the interrupt of the one before. Then
 * moves the BAR while the device runs, says the status at the new and the old address, makes 64 requests there; moves it out
 * of the window and back. Says all bits that ever were set, resets the device, and then the machine.
 */
#include "guest.inc"
#include "irq.inc"
#include "pci.inc"

#define RNG_ID 0x10441af4
#define VECTOR 0x50
#define REQUESTS 64
#define BYTES 16
#define SIZE 8
/* How far the BAR moves. */
#define AWAY 0x100000

/* Offsets in the BAR, as the monitor has them. */
#define DRIVER_FEATURE_SELECT 0x08
#define DRIVER_FEATURE 0x0c
#define DEVICE_STATUS 0x14
#define QUEUE_SELECT 0x16
#define QUEUE_SIZE 0x18
#define QUEUE_VECTOR 0x1a
#define QUEUE_ENABLE 0x1c
#define QUEUE_DESC 0x20
#define QUEUE_DRIVER 0x28
#define QUEUE_DEVICE 0x30
#define MSIX_ROW_1 0x2010
#define NOTIFY 0x4000

    pvh_start
    stack
    interrupt_tables
    set_gate VECTOR, arrived
    movl $LAPIC_ENABLE, LAPIC_SPURIOUS

    /* EBP is the function from here on. */
    xor %ebp, %ebp
find:
    inc %ebp
    xor %ebx, %ebx
    call pci_read
    cmp $RNG_ID, %eax
    je found
    cmp $PCI_FUNCTIONS, %ebp
    jb find
    say "not found\n"
    reset

found:
    say_hex "function ", %ebp
    mov $PCI_COMMAND, %ebx
    mov $PCI_MEMORY_AND_MASTER, %eax
    call pci_write
    /* The capability of MSI-X; its control is in the upper half. */
    mov $PCI_CAPABILITIES, %ebx
    call pci_read
    movzx %al, %ebx
1:  call pci_read
    cmp $PCI_MSIX, %al
    je 2f
    movzx %ah, %ebx
    jmp 1b
2:  mov $0x80000000, %eax
    call pci_write
    mov $PCI_BAR0, %ebx
    call pci_read
    mov %eax, bar

    /* Vector 1 for queue 0. */
    movl $LAPIC, MSIX_ROW_1(%eax)
    movl $0, MSIX_ROW_1 + 4(%eax)
    movl $VECTOR, MSIX_ROW_1 + 8(%eax)
    movl $0, MSIX_ROW_1 + 12(%eax)

    mov %eax, %ecx
    movb $0, DEVICE_STATUS(%ecx)
1:  cmpb $0, DEVICE_STATUS(%ecx)
    jne 1b
    movb $1, DEVICE_STATUS(%ecx)
    movb $3, DEVICE_STATUS(%ecx)
    /* VERSION_1 alone. */
    movl $1, DRIVER_FEATURE_SELECT(%ecx)
    movl $1, DRIVER_FEATURE(%ecx)
    movb $0xb, DEVICE_STATUS(%ecx)
    movw $0, QUEUE_SELECT(%ecx)
    movw $SIZE, QUEUE_SIZE(%ecx)
    movw $1, QUEUE_VECTOR(%ecx)
    movl $descriptors, QUEUE_DESC(%ecx)
    movl $available, QUEUE_DRIVER(%ecx)
    movl $used, QUEUE_DEVICE(%ecx)
    movw $1, QUEUE_ENABLE(%ecx)
    movb $0xf, DEVICE_STATUS(%ecx)
    call say_status

    /* Descriptor 0: a buffer that the device writes. */
    movl $buffer, descriptors
    movl $BYTES, descriptors + 8
    movl $2, descriptors + 12
    xor %edi, %edi

    /* EDI requests were made. All are of descriptor 0, so the ring is as it is. */
request:
    inc %edi
    mov %edi, %eax
    shl $16, %eax
    mov %eax, available
    mov bar, %ecx
    movw $0, NOTIFY(%ecx)
sleep:
    sti
1:  hlt
    jmp 1b

arrived:
    movl $0, LAPIC_EOI
    stack
    mov used, %eax
    shr $16, %eax
    cmp %eax, %edi
    jne sleep
    mov buffer, %eax
    or %eax, bits
    cmp $REQUESTS, %edi
    je move
    cmp $(2 * REQUESTS), %edi
    jb request

    /* Where no BAR may be, and back. */
    mov bar, %eax
    push %eax
    mov $PCI_BAR0, %ebx
    mov $PCI_ECAM, %eax
    call pci_write
    call say_status
    pop %eax
    call pci_write
    call say_status
    say_hex "requests ", %edi
    say_hex "bits ", bits
    mov bar, %ecx
    movb $0, DEVICE_STATUS(%ecx)
1:  cmpb $0, DEVICE_STATUS(%ecx)
    jne 1b
    call say_status
    reset

move:
    mov bar, %eax
    push %eax
    add $AWAY, %eax
    mov %eax, bar
    mov $PCI_BAR0, %ebx
    call pci_write
    call say_status
    pop %ecx
    movzbl DEVICE_STATUS(%ecx), %eax
    say_hex "old ", %eax
    jmp request

say_status:
    push %eax
    push %ecx
    mov bar, %ecx
    movzbl DEVICE_STATUS(%ecx), %eax
    say_hex "status ", %eax
    pop %ecx
    pop %eax
    ret

    pci_routines
    serial_routines

    .bss
    .balign 16
descriptors:
    .space 16 * SIZE
available:
    .space 6 + 2 * SIZE
    .balign 4
used:
    .space 6 + 8 * SIZE
    .balign 4
buffer:
    .space BYTES
bar:
    .space 4
bits:
    .space 4
