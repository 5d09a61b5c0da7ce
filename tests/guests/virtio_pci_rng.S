/*
 * Finds the entropy device on the PCI bus and makes 64 requests of 16 bytes, each after the interrupt of the one before. Then
 * moves the BAR while the device runs, says the status at the new and the old address, makes 64 requests there; moves it out
 * of the window and back. Says all bits that ever were set, resets the device, and then the machine.
 */
#include "guest.inc"
#include "irq.inc"
#include "virtio_pci.inc"

#define VECTOR 0x50
#define REQUESTS 64
#define BYTES 16
/* How far the BAR moves. */
#define AWAY 0x100000

    pvh_start
    stack
    interrupt_tables
    set_gate VECTOR, arrived
    movl $LAPIC_ENABLE, LAPIC_SPURIOUS

    /* EBP is the function from here on. */
    mov $VIRTIO_PCI_RNG, %eax
    call virtio_pci_find
    cmp $PCI_FUNCTIONS, %ebp
    jb found
    say "not found\n"
    reset

found:
    say_hex "function ", %ebp
    call virtio_pci_decode
    mov %ecx, bar
    call virtio_pci_msix
    mov $MSIX_ENABLE, %eax
    call pci_write
    /* Vector 1 for queue 0. */
    movl $LAPIC, MSIX_TABLE + MSIX_ROW(%ecx)
    movl $0, MSIX_TABLE + MSIX_ROW + 4(%ecx)
    movl $VECTOR, MSIX_TABLE + MSIX_ROW + MSIX_DATA(%ecx)
    movl $0, MSIX_TABLE + MSIX_ROW + MSIX_CONTROL(%ecx)
    call virtio_pci_negotiate
    mov $1, %eax
    call virtio_pci_queue
    movb $VIRTIO_READY, DEVICE_STATUS(%ecx)
    call say_status

    virtio_buffer buffer, BYTES
    xor %edi, %edi

    /* EDI requests were made. All are of descriptor 0, so the ring is as it is. */
request:
    inc %edi
    mov %edi, %eax
    shl $16, %eax
    mov %eax, virtq_available
    mov bar, %ecx
    movw $0, NOTIFY(%ecx)
sleep:
    sti
1:  hlt
    jmp 1b

arrived:
    movl $0, LAPIC_EOI
    stack
    mov virtq_used, %eax
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
    virtio_pci_routines
    serial_routines

    .bss
    .balign 16
buffer:
    .space BYTES
bar:
    .space 4
bits:
    .space 4
