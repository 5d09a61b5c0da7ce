/* Stores to RAM at 5 GiB, which it maps itself, loads that again and says it; resets. Needs 6 GiB. */
#include "guest64.inc"

#define HIGH 0x140000000
#define HIGH_GIB 5
#define PRESENT_WRITABLE 3
#define LARGE_PAGE 0x80

    linux64_start
    /* The first entry of the top-level table leads to the one of 1 GiB entries. */
    mov %cr3, %rax
    mov (%rax), %rbx
    and $~0xfff, %rbx
    mov $directory, %rax
    or $PRESENT_WRITABLE, %rax
    mov %rax, HIGH_GIB * 8(%rbx)
    mov $(HIGH | LARGE_PAGE | PRESENT_WRITABLE), %rax
    mov %rax, directory

    mov $HIGH, %rdi
    mov (%rdi), %rax
    say_rax "fresh "
    mov $0x0123456789abcdef, %rax
    mov %rax, 0x1ff8(%rdi)
    xor %eax, %eax
    mov 0x1ff8(%rdi), %rax
    say_rax "stored "
    reset

    serial_routines64

    .bss
    .balign 0x1000
directory:
    .space 0x1000
