/* guest: cflags=-DPVH_ENTRY_QUAD */
/* The PVH guest with an entry of eight bytes, behind a note of somebody else with an odd length. */
    .section .note.pvh, "a", @note
    .long 4, 5, 1
    .asciz "GNU"
    .byte 1, 2, 3, 4, 5
#include "boot_pvh.inc"
