/*
 * Plays the guest of hot-plug, without interrupts: looks at the registers of the slots. Of a disk that was added it says slot
 * and id, starts it, reads its first sector, and says how that begins. A slot that is to leave it ejects with a write of that
 * sector under way, and says the id again. A number on the command line has it keep what it is asked for.
 */
#include "guest.inc"
#include "virtio_pci.inc"

#define SLOTS_CHANGED 0xb10
#define SLOTS_LEAVING 0xb14
#define SLOTS_EJECT 0xb18
#define SECTOR 512

    pvh_start
    stack
    mov START_INFO_CMDLINE(%ebx), %esi
    call hex_number
    mov %eax, keeps
    say "ready\n"
look:
    pause
    mov $SLOTS_CHANGED, %edx
    in %dx, %eax
    test %eax, %eax
    jnz added
    mov $SLOTS_LEAVING, %edx
    in %dx, %eax
    test %eax, %eax
    jz look

    mov %eax, %edi
    say_hex "leaving ", %edi
    cmpl $0, keeps
    jne look
    /* Zeros, whose end nobody waits for; the device runs on. */
    bsf %edi, %ebp
    shl $3, %ebp
    movl $0, buffer
    movl $1, header
    mov $VIRTQ_NEXT, %eax
    call request
    mov %edi, %eax
    mov $SLOTS_EJECT, %edx
    out %eax, %dx
    call say_id
    jmp look

added:
    mov %eax, %edi
    say_hex "added ", %edi
    bsf %edi, %ebp
    shl $3, %ebp
    call say_id
    call start_disk
    movl $0, header
    mov $(VIRTQ_NEXT | VIRTQ_WRITE), %eax
    call request
1:  pause
    cmpw $1, virtq_used + 2
    jne 1b
    say_hex "data ", buffer
    jmp look

/* Says the id of the function EBP. */
say_id:
    xor %ebx, %ebx
    call pci_read
    say_hex "id ", %eax
    ret

/* Starts the disk EBP with one queue, from its beginning. */
start_disk:
    call virtio_pci_decode
    mov %ecx, bar
    call virtio_pci_negotiate
    mov $NO_VECTOR, %eax
    call virtio_pci_queue
    movb $VIRTIO_READY, DEVICE_STATUS(%ecx)
    ret

/* Makes a request of the first sector, whose data have the flags in EAX. */
request:
    movl $header, virtq_descriptors
    movl $16, virtq_descriptors + 8
    movl $(VIRTQ_NEXT | 1 << 16), virtq_descriptors + 12
    movl $buffer, virtq_descriptors + 16
    movl $SECTOR, virtq_descriptors + 24
    or $(2 << 16), %eax
    mov %eax, virtq_descriptors + 28
    movl $status, virtq_descriptors + 32
    movl $1, virtq_descriptors + 40
    movl $VIRTQ_WRITE, virtq_descriptors + 44
    /* All are of descriptor 0, so the ring is as it is. */
    addl $0x10000, virtq_available
    mov bar, %ecx
    movw $0, NOTIFY(%ecx)
    ret

    pci_routines
    virtio_pci_routines
    serial_routines
    cmdline_routines

    .bss
    .balign 16
header:
    .space 16
buffer:
    .space SECTOR
status:
    .space 4
bar:
    .space 4
keeps:
    .space 4
