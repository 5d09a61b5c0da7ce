/* Reads four bytes at one address without memory and at another, in turns, for ever. */
#include "guest.inc"

    pvh_start
    mov $BENCH_MMIO, %edi
1:  mov (%edi), %eax
    mov 0x1000(%edi), %eax
    jmp 1b
