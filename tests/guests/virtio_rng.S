/*
 * Drives the entropy device: 64 requests of 16 bytes, each after the interrupt of the one before; all bits that ever were set
 * in them. Then breaks the ring, looks at the status after the interrupt that says so, resets the device and says its status;
 * and makes 64 requests again, with the same answers. Resets the machine.
 */
#include "guest.inc"
#include "irq.inc"
#include "virtio_mmio.inc"

#define VECTOR 0x50
#define REQUESTS 64
#define BYTES 16

    pvh_start
    stack
    interrupt_tables
    set_gate VECTOR, arrived
    route_ioapic_pin VIRTIO_LINE, VECTOR
    say_hex "magic ", VIRTIO_MAGIC
    say_hex "device ", VIRTIO_DEVICE_ID
    xor %ebp, %ebp

start_device:
    virtio_negotiate
    virtio_queue
    movl $VIRTIO_READY, VIRTIO_STATUS
    say_hex "status ", VIRTIO_STATUS
    virtio_buffer buffer, BYTES
    xor %edi, %edi
    xor %ebx, %ebx

    /* EDI requests were made. All are of descriptor 0, so the ring is as it is. */
request:
    inc %edi
    mov %edi, %eax
    shl $16, %eax
    mov %eax, virtq_available
    movl $0, VIRTIO_NOTIFY
sleep:
    sti
1:  hlt
    jmp 1b

arrived:
    mov VIRTIO_INTERRUPT_STATUS, %eax
    mov %eax, VIRTIO_INTERRUPT_ACK
    movl $0, LAPIC_EOI
    stack
    cmp $REQUESTS, %edi
    ja broken
    mov virtq_used, %eax
    shr $16, %eax
    cmp %eax, %edi
    jne sleep
    dec %eax
    and $(VIRTQ_SIZE - 1), %eax
    cmpl $BYTES, virtq_used + 8(, %eax, 8)
    jne wrong
    or buffer, %ebx
    or buffer + 4, %ebx
    or buffer + 8, %ebx
    or buffer + 12, %ebx
    cmp $REQUESTS, %edi
    jb request
    say_hex "requests ", %edi
    say_hex "bits ", %ebx
    inc %ebp
    cmp $2, %ebp
    je end

    /* More available than the queue has descriptors. */
    mov $1000, %edi
    movl $(1000 << 16), virtq_available
    movl $0, VIRTIO_NOTIFY
    jmp sleep
broken:
    mov VIRTIO_STATUS, %eax
    test $VIRTIO_NEEDS_RESET, %eax
    jz sleep
    say_hex "broken ", %eax
    movl $0, VIRTIO_STATUS
    say_hex "reset ", VIRTIO_STATUS
    say_hex "ready ", VIRTIO_QUEUE_READY
    jmp start_device

wrong:
    say "wrong length\n"
end:
    reset

    serial_routines

    .bss
    .balign 16
buffer:
    .space BYTES
