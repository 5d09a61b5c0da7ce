/*
 * Plays the guest of hot-plug, without interrupts: looks at the registers of the slots. Of a disk that was added it says slot
 * and id, starts it, reads its first sector, and says how that begins. A slot that is to leave it ejects with a write of that
 * sector under way, and says the id again. A number on the command line has it keep what it is asked for.
 */
#include "guest.inc"
#include "pci.inc"

#define SLOTS_CHANGED 0xb10
#define SLOTS_LEAVING 0xb14
#define SLOTS_EJECT 0xb18
#define SIZE 8
#define SECTOR 512

/* Offsets in the BAR, as the monitor has them. */
#define DRIVER_FEATURE_SELECT 0x08
#define DRIVER_FEATURE 0x0c
#define DEVICE_STATUS 0x14
#define QUEUE_SELECT 0x16
#define QUEUE_SIZE 0x18
#define QUEUE_ENABLE 0x1c
#define QUEUE_DESC 0x20
#define QUEUE_DRIVER 0x28
#define QUEUE_DEVICE 0x30
#define NOTIFY 0x4000

/* Flags of descriptors: another one follows; the device writes. */
#define NEXT 1
#define WRITE 2

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
    mov $NEXT, %eax
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
    mov $(NEXT | WRITE), %eax
    call request
1:  pause
    cmpw $1, used + 2
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
    movl $0, available
    movl $0, used
    mov $PCI_COMMAND, %ebx
    mov $PCI_MEMORY_AND_MASTER, %eax
    call pci_write
    mov $PCI_BAR0, %ebx
    call pci_read
    mov %eax, bar
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
    movl $descriptors, QUEUE_DESC(%ecx)
    movl $available, QUEUE_DRIVER(%ecx)
    movl $used, QUEUE_DEVICE(%ecx)
    movw $1, QUEUE_ENABLE(%ecx)
    movb $0xf, DEVICE_STATUS(%ecx)
    ret

/* Makes a request of the first sector, whose data have the flags in EAX. */
request:
    movl $header, descriptors
    movl $16, descriptors + 8
    movl $(NEXT | 1 << 16), descriptors + 12
    movl $buffer, descriptors + 16
    movl $SECTOR, descriptors + 24
    or $(2 << 16), %eax
    mov %eax, descriptors + 28
    movl $status, descriptors + 32
    movl $1, descriptors + 40
    movl $WRITE, descriptors + 44
    /* All are of descriptor 0, so the ring is as it is. */
    addl $0x10000, available
    mov bar, %ecx
    movw $0, NOTIFY(%ecx)
    ret

    pci_routines
    serial_routines
    cmdline_routines

    .bss
    .balign 16
descriptors:
    .space 16 * SIZE
available:
    .space 6 + 2 * SIZE
    .balign 4
used:
    .space 6 + 8 * SIZE
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
