/* The port is that of QEMU's isa-debug-exit. */
#include "power.h"

#include "x86.h"

#define DEBUG_EXIT 0xf4

void power_off(uint8_t value)
{
    outb(DEBUG_EXIT, value);
    halt_forever();
}
