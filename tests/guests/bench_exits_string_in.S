/* Reads 256 bytes from a port with one string instruction, for ever. */
#include "guest.inc"

    pvh_start
    cld
    mov $BENCH_PORT, %edx
1:  mov $buffer, %edi
    mov $256, %ecx
    rep insb
    jmp 1b

    /* Aligned to its size: KVM cuts a string access at a page boundary. */
    .bss
    .balign 256
buffer:
    .space 256
