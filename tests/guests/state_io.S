/*
 * Reads and writes a device in every way that takes more than one step, each byte one of a sequence: what is read must
 * be the next of the device's sequence, what is written is the next of the guest's own. Byte n of the first is
 * bits 16-23 of n * READ_FACTOR, of the other of n * WRITE_FACTOR. A cell of the device, 8 bytes across a page, is
 * incremented in place. One round is all of it.
 *
 * R12: bytes read so far. R13: bytes written so far. R14: increments so far.
 */
#include "guest64.inc"
#include "state.inc"

#define SEQUENCE_PORT 0x5a0
#define SEQUENCE 0xd0000000
#define CELL 0xd0002ffc
#define READ_FACTOR 0x1e3779b1
#define WRITE_FACTOR 0x05ebca6b
/* More than one page of elements is two exits. */
#define STRING 5000
#define MOVED 24
#define WRITTEN 9

/* The next byte of a sequence, in AL. Clobbers EAX. */
.macro next factor, count
    imul $\factor, \count\()d, %eax
    shr $16, %eax
    inc \count
.endm

/* Checks that the lowest bytes of RBX are the next. Clobbers EAX, RBX, ECX. */
.macro expect bytes, check
    mov $\bytes, %ecx
1:  next READ_FACTOR, %r12
    cmp %al, %bl
    mov $\check, %eax
    jne failed
    shr $8, %rbx
    dec %ecx
    jnz 1b
.endm

/* Checks that the buffer begins with the next bytes. Clobbers EAX, ECX, RSI. */
.macro expect_buffer bytes, check
    mov $\bytes, %ecx
    mov $buffer, %esi
1:  next READ_FACTOR, %r12
    cmp %al, (%rsi)
    mov $\check, %eax
    jne failed
    inc %rsi
    dec %ecx
    jnz 1b
.endm

/* The next bytes to write, in RBX. Clobbers EAX, ECX. */
.macro produce bytes
    xor %ebx, %ebx
    mov $\bytes, %ecx
1:  next WRITE_FACTOR, %r13
    shl $8, %rbx
    mov %al, %bl
    dec %ecx
    jnz 1b
    bswap %rbx
    .if \bytes < 8
    shr $(64 - 8 * \bytes), %rbx
    .endif
.endm

    linux64_start
    cld
    xor %r12d, %r12d
    xor %r13d, %r13d
    xor %r14d, %r14d

round:
    /* A port, in each width. */
    mov $SEQUENCE_PORT, %edx
    xor %eax, %eax
    in %dx, %al
    mov %rax, %rbx
    expect 1, 1
    in %dx, %ax
    mov %rax, %rbx
    expect 2, 2
    in %dx, %eax
    mov %rax, %rbx
    expect 4, 3

    /* Across a page of MMIO. */
    mov $(SEQUENCE + 0xffc), %edi
    mov (%rdi), %rbx
    expect 8, 4
    mov $(SEQUENCE + 0xfff), %edi
    mov (%rdi), %ebx
    expect 4, 5
    produce 8
    mov $(SEQUENCE + 0xffc), %edi
    mov %rbx, (%rdi)
    produce 2
    mov $(SEQUENCE + 0xfff), %edi
    mov %bx, (%rdi)

    /* Read, changed and written by one instruction. */
    mov $CELL, %edi
    incq (%rdi)
    inc %r14
    mov (%rdi), %rbx
    cmp %r14, %rbx
    mov $6, %eax
    jne failed

    /* Strings. */
    mov $SEQUENCE_PORT, %edx
    mov $buffer, %edi
    mov $STRING, %ecx
    rep insb
    expect_buffer STRING, 7
    mov $(SEQUENCE + 0xff4), %esi
    mov $buffer, %edi
    mov $MOVED, %ecx
    rep movsb
    expect_buffer MOVED, 8
    mov $(SEQUENCE + 0xffc), %esi
    mov $buffer, %edi
    movsq
    expect_buffer 8, 9

    mov $buffer, %rdi
    mov $WRITTEN, %ecx
1:  next WRITE_FACTOR, %r13
    mov %al, (%rdi)
    inc %rdi
    dec %ecx
    jnz 1b
    mov $SEQUENCE_PORT, %edx
    mov $buffer, %esi
    mov $WRITTEN, %ecx
    rep outsb

    produce 4
    mov %ebx, %eax
    out %eax, %dx

    round_done
    jmp round

/* EAX: the check. */
failed:
    wrong %eax

    .bss
    .balign 0x1000
    .space 0xf80
buffer:
    .space STRING
