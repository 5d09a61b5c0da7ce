/* Reads one byte from a port, for ever. */
#include "guest.inc"

    pvh_start
    mov $BENCH_PORT, %edx
1:  in %dx, %al
    jmp 1b
