/*
 * Drives the virtio console: says the size of the terminal, sends a line by its transmit queue, and says when that was taken.
 * Each time the configuration changes it says the size again, and after the first time it resets the machine.
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
    virtio_buffer line, line_end-line, 0
    movl $(1 << 16), virtq_available
    movl $TRANSMIT, VIRTIO_NOTIFY
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
    reset

    serial_routines

    .data
line:
    .ascii "by the virtio console\n"
line_end:
