/*
 * Resets at once: its first exit is its end. The code means the same in 64-bit mode, for loaders that enter
 * there.
 */
#include "guest.inc"

    pvh_start
    reset
