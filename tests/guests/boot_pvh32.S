/* guest: cflags=-m32 ldflags=-Wl,--oformat=elf32-i386 */
/* The PVH guest as ELF32 at 2 MiB. */
#include "boot_pvh.inc"
