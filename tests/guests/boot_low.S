/* guest: ldflags=-Wl,--defsym=BASE=0x10000 */
/* The PVH guest below 640 KiB, for a machine of 1 MiB. */
#include "boot_pvh.inc"
