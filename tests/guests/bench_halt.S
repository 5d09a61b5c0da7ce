/*
 * Says on COM1 that it runs, with a byte that no log line contains, and halts for good. The code means the
 * same in 64-bit mode, for loaders that enter there.
 */
#include "guest.inc"

    pvh_start
    putc 0x1e
    halt
