/*
 * Reads an address without a device in every width, writes it, and reads it again: what is said is the AND of all reads
 * of a width over 100 addresses. Then resets.
 */
#include "guest64.inc"

#define ROUNDS 100

    linux64_start
    .irp width, 1, 2, 4, 8
    mov $BENCH_MMIO, %edi
    mov $ROUNDS, %ecx
    mov $-1, %rbx
1:  call access_\width
    add $\width, %rdi
    dec %ecx
    jnz 1b
    mov %rbx, %rax
    say_rax "width \width: "
    .endr
    reset

access_1:
    and (%rdi), %bl
    movb $0, (%rdi)
    and (%rdi), %bl
    ret
access_2:
    and (%rdi), %bx
    movw $0, (%rdi)
    and (%rdi), %bx
    ret
access_4:
    mov (%rdi), %eax
    movl $0, (%rdi)
    and (%rdi), %eax
    movslq %eax, %rax
    and %rax, %rbx
    ret
access_8:
    and (%rdi), %rbx
    movq $0, (%rdi)
    and (%rdi), %rbx
    ret

    serial_routines64
