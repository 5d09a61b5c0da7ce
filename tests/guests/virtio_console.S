/*
 * Drives the virtio console: says the size of the terminal, and says it again each time it is told of a change.
 * The device tells a driver that starts: then it sends a line by its transmit queue, and says when that was taken.
 * After the next change it resets the machine.
 */
#include "guest.inc"
#include "irq.inc"
#include "virtio_mmio.inc"

#define VECTOR 0x50
#define SIZE 1
#define TRANSMIT 1
#define USED 1
#define CHANGED 2

    pvh_start
    stack
    interrupt_tables
    set_gate VECTOR, arrived
    route_ioapic_pin VIRTIO_LINE, VECTOR
    say_hex "device ", VIRTIO_DEVICE_ID
    virtio_negotiate SIZE
    say_hex "size ", VIRTIO_CONFIG
    virtio_queue TRANSMIT
    movl $VIRTIO_READY, VIRTIO_STATUS
sleep:
    sti
1:  hlt
    jmp 1b

arrived:
    mov VIRTIO_INTERRUPT_STATUS, %ebx
    mov %ebx, VIRTIO_INTERRUPT_ACK
    movl $0, LAPIC_EOI
    stack
    test $CHANGED, %ebx
    jnz changed
    test $USED, %ebx
    jz sleep
    say "sent\n"
    jmp sleep

changed:
    say_hex "size ", VIRTIO_CONFIG
    incl changes
    cmpl $1, changes
    je send
    reset

send:
    virtio_buffer line, line_end-line, 0
    movl $(1 << 16), virtq_available
    movl $TRANSMIT, VIRTIO_NOTIFY
    jmp sleep

    serial_routines

    .data
changes:
    .long 0
line:
    .ascii "by the virtio console\n"
line_end:
