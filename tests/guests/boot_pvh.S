/* The PVH guest as ELF64 at 2 MiB. */
#include "boot_pvh.inc"
