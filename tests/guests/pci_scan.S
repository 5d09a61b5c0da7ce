/*
 * Looks for PCI functions by ports: says address and id of each, the bits that differ when its registers are read as memory,
 * and its first BAR after all ones were written to it. Then resets.
 */
#include "guest.inc"
#include "pci.inc"

    pvh_start
    stack
    xor %ebp, %ebp
function:
    xor %ebx, %ebx
    call pci_read
    cmp $-1, %eax
    je next
    push %eax
    say_hex "function ", %ebp
    pop %eax
    say_hex "id ", %eax
    call compare
    mov $PCI_BAR0, %ebx
    call pci_read
    push %eax
    mov $-1, %eax
    call pci_write
    call pci_read
    say_hex "bar ", %eax
    pop %eax
    call pci_write
next:
    inc %ebp
    cmp $PCI_FUNCTIONS, %ebp
    jb function
    reset

/* Says which bits of the 64 registers differ between the two ways. */
compare:
    xor %ebx, %ebx
    xor %edi, %edi
1:  call pci_read
    mov %ebp, %ecx
    shl $12, %ecx
    xor PCI_ECAM(%ecx, %ebx), %eax
    or %eax, %edi
    add $4, %ebx
    cmp $256, %ebx
    jb 1b
    say_hex "differs ", %edi
    ret

    pci_routines
    serial_routines
