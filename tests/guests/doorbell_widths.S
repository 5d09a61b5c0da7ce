/*
 * Writes to one address without memory once with a byte, twice with two, three times with four and four times with eight;
 * eight bytes behind it the numbers from 1 to 5 as often as each says; sixteen bytes behind it once with each width. To a
 * port once with a byte, twice with two, three times with four. Then the debug exit.
 */
#include "guest64.inc"

    linux64_start
    mov $BENCH_MMIO, %edi
    xor %eax, %eax
    movb %al, (%rdi)
    .rept 2
    movw %ax, (%rdi)
    .endr
    .rept 3
    movl %eax, (%rdi)
    .endr
    .rept 4
    movq %rax, (%rdi)
    .endr
    mov $5, %eax
1:  mov %eax, %ecx
2:  movl %eax, 8(%rdi)
    dec %ecx
    jnz 2b
    dec %eax
    jnz 1b
    movb %al, 16(%rdi)
    movw %ax, 16(%rdi)
    movl %eax, 16(%rdi)
    movq %rax, 16(%rdi)
    mov $BENCH_PORT, %edx
    out %al, %dx
    .rept 2
    out %ax, %dx
    .endr
    .rept 3
    out %eax, %dx
    .endr
    debug_exit $0
    halt
