/* Reads four bytes where there is no memory, for ever. */
#include "guest.inc"

    pvh_start
    mov $BENCH_MMIO, %esi
1:  mov (%esi), %eax
    jmp 1b
