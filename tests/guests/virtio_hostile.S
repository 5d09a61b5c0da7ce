/* The worst driver, over virtio-mmio. */
#define TRANSPORT "hostile_mmio.inc"
#include "hostile.inc"

    hostile_start
#include "hostile_rings.inc"
#include "hostile_registers.inc"
    hostile_end

    hostile_routines
    transport_routines
