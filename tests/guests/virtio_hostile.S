/*
 * The worst driver of the entropy device: each attack is made on a device that is ready, and then a driver that behaves resets it
 * and has one request served. Says for each whether that was so, and at the end how the device looks. Resets the machine.
 */
#include "guest.inc"
#include "virtio_mmio.inc"

#define BYTES 16
#define PATIENCE 10000000
/* Looks at the status, each of which exits: some milliseconds. */
#define LOOKS 500

/* Begins an attack: the device is ready. */
.macro attack
    call ready
.endm

/* Ends an attack, once the device has looked at it. */
.macro survived name
    call look
    mov $\name, %eax
    call good
.endm

/* Makes `count` more chains available, the first of them that of `head`, and notifies. */
.macro submit head, count=1
    movw $\head, virtq_available + 4
    movw $\count, virtq_available + 2
    movl $0, VIRTIO_NOTIFY
.endm

/* Descriptor `index` with the upper half of its address too. */
.macro descriptor index, high, low, length, flags, next
    movl $\low, virtq_descriptors + 16 * \index
    movl $\high, virtq_descriptors + 16 * \index + 4
    movl $\length, virtq_descriptors + 16 * \index + 8
    movl $(\flags | \next << 16), virtq_descriptors + 16 * \index + 12
.endm

#define NEXT 1
#define WRITE 2
#define INDIRECT 4

    pvh_start
    stack

    /* Descriptors: a loop, one that is not there, loops of two, more than all memory. */
    attack
    descriptor 0, 0, buffer, BYTES, (NEXT | WRITE), 0
    submit 0
    survived 0x01
    attack
    descriptor 0, 0, buffer, BYTES, (NEXT | WRITE), 0xffff
    submit 0
    survived 0x02
    attack
    descriptor 0, 0, buffer, BYTES, (NEXT | WRITE), 1
    descriptor 1, 0, buffer, 0, (NEXT | WRITE), 0
    submit 0
    survived 0x03
    attack
    descriptor 0, 0, 0, 0xffffffff, WRITE, 0
    submit 0
    survived 0x04

    /* Addresses: devices, the end of everything, over that end, the hole above RAM, the local APIC. */
    attack
    descriptor 0, 0, VIRTIO, 0x200, WRITE, 0
    submit 0
    survived 0x11
    attack
    descriptor 0, 0xffffffff, 0xfffffff0, 0x20, WRITE, 0
    submit 0
    survived 0x12
    attack
    descriptor 0, 0xffffffff, 0xffffffff, 1, WRITE, 0
    submit 0
    survived 0x13
    attack
    descriptor 0, 0, 0xbffffff0, 0x20, WRITE, 0
    submit 0
    survived 0x14
    attack
    descriptor 0, 0, 0xfee00000, 0x1000, WRITE, 0
    submit 0
    survived 0x15

    /* The rings as buffers. */
    attack
    descriptor 0, 0, virtq_descriptors, (16*VIRTQ_SIZE), WRITE, 0
    submit 0
    survived 0x21
    attack
    descriptor 0, 0, virtq_available, (6+2*VIRTQ_SIZE), WRITE, 0
    submit 0
    survived 0x22
    attack
    descriptor 0, 0, virtq_used, (6+8*VIRTQ_SIZE), WRITE, 0
    submit 0
    survived 0x23

    /* Indirect tables that were not negotiated; readable behind writable; only readable; empty. */
    attack
    descriptor 0, 0, virtq_descriptors, 16, INDIRECT, 0
    submit 0
    survived 0x31
    attack
    descriptor 0, 0, buffer, BYTES, (NEXT | WRITE), 1
    descriptor 1, 0, buffer, BYTES, 0, 0
    submit 0
    survived 0x32
    attack
    descriptor 0, 0, buffer, BYTES, 0, 0
    submit 0
    survived 0x33
    attack
    descriptor 0, 0, buffer, 0, WRITE, 0
    submit 0
    survived 0x34

    /* Rings: heads that are not there, indices that jump and go back, the same head in every entry. */
    attack
    descriptor 0, 0, buffer, BYTES, WRITE, 0
    submit 0xffff
    survived 0x41
    attack
    submit 0, 0x8000
    survived 0x42
    attack
    submit 0, 0xffff
    survived 0x43
    attack
    descriptor 0, 0, buffer, BYTES, WRITE, 0
    movl $0, virtq_available + 8
    movl $0, virtq_available + 12
    movl $0, virtq_available + 16
    submit 0, VIRTQ_SIZE
    survived 0x44

    /* A storm of notifications, of all queues there could be. */
    attack
    mov $2000, %ecx
1:  mov %ecx, %eax
    and $7, %eax
    mov %eax, VIRTIO_NOTIFY
    dec %ecx
    jnz 1b
    movl $-1, VIRTIO_NOTIFY
    survived 0x51

    /* The status: every value, then everything at once. */
    attack
    mov $255, %ecx
1:  mov %ecx, VIRTIO_STATUS
    dec %ecx
    jnz 1b
    movl $0xffffffff, VIRTIO_STATUS
    movl $VIRTIO_NEEDS_RESET, VIRTIO_STATUS
    survived 0x61

    /* Queues that cannot be, and a device that is ready without one. */
    .irp address, 0, 1, 0xd0010000, 0xfffffffe
    call negotiate
    movl $VIRTQ_SIZE, VIRTIO_QUEUE_NUM
    movl $\address, VIRTIO_DESCRIPTORS
    movl $\address, VIRTIO_AVAILABLE
    movl $\address, VIRTIO_USED
    movl $\address, VIRTIO_USED + 4
    movl $1, VIRTIO_QUEUE_READY
    movl $VIRTIO_READY, VIRTIO_STATUS
    movl $0, VIRTIO_NOTIFY
    .endr
    survived 0x71
    .irp size, 0, 3, 0x200, 0x10008, 0xffffffff
    call negotiate
    movl $virtq_descriptors, VIRTIO_DESCRIPTORS
    movl $virtq_available, VIRTIO_AVAILABLE
    movl $virtq_used, VIRTIO_USED
    movl $\size, VIRTIO_QUEUE_NUM
    movl $1, VIRTIO_QUEUE_READY
    movl $VIRTIO_READY, VIRTIO_STATUS
    movl $0, VIRTIO_NOTIFY
    .endr
    survived 0x72
    call negotiate
    movl $VIRTIO_READY, VIRTIO_STATUS
    movl $0, VIRTIO_NOTIFY
    survived 0x73

    /* A queue that changes while it runs. */
    attack
    descriptor 0, 0, buffer, BYTES, WRITE, 0
    movl $0xfffffff0, VIRTIO_DESCRIPTORS
    movl $0, VIRTIO_AVAILABLE
    movl $0, VIRTIO_USED
    movl $0xffff, VIRTIO_QUEUE_NUM
    movl $0, VIRTIO_QUEUE_READY
    submit 0
    survived 0x74

    /* Every register of every width, but the reset of a queue. */
    attack
    xor %ecx, %ecx
    mov $-1, %eax
1:  mov %al, VIRTIO(%ecx)
    mov %ax, VIRTIO(%ecx)
    mov VIRTIO(%ecx), %bl
    mov VIRTIO(%ecx), %bx
    mov VIRTIO(%ecx), %ebx
    mov %eax, VIRTIO(%ecx)
    inc %ecx
    cmp $0x200, %ecx
    jb 1b
    survived 0x81

    /* Resets, one after the other, with a request in flight. */
    mov $100, %ecx
1:  push %ecx
    call ready
    descriptor 0, 0, buffer, BYTES, WRITE, 0
    submit 0
    movl $0, VIRTIO_STATUS
    movl $0, VIRTIO_STATUS
    pop %ecx
    dec %ecx
    jnz 1b
    survived 0x91

    say_hex "status ", VIRTIO_STATUS
    reset

negotiate:
    virtio_negotiate
    movl $0, VIRTIO_QUEUE_SEL
    ret

/* A device that is ready, with empty rings. */
ready:
    virtio_negotiate
    virtio_queue
    movl $VIRTIO_READY, VIRTIO_STATUS
    ret

/* Until the device says that it is broken, or for a while. Clobbers EAX, ECX. */
look:
    mov $LOOKS, %ecx
1:  mov VIRTIO_STATUS, %eax
    test $VIRTIO_NEEDS_RESET, %eax
    jnz 2f
    dec %ecx
    jnz 1b
2:  ret

/* Says whether a request is served now, after the attack EAX. */
good:
    push %eax
    call ready
    virtio_buffer buffer, BYTES
    submit 0
    mov $PATIENCE, %ecx
1:  cmpw $1, virtq_used + 2
    je 2f
    dec %ecx
    jnz 1b
    say "lost after "
    jmp 3f
2:  cmpl $BYTES, virtq_used + 8
    jne 4f
    say "served after "
3:  pop %eax
    call serial_hex
    say "\n"
    ret
4:  say "wrong after "
    jmp 3b

    serial_routines

    .bss
    .balign 16
buffer:
    .space BYTES
