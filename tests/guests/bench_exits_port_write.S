/* Writes one byte to a port, for ever. */
#include "guest.inc"

    pvh_start
    mov $BENCH_PORT, %edx
1:  out %al, %dx
    jmp 1b
