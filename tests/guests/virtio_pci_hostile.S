/* The worst driver, over virtio-pci. */
#define TRANSPORT "hostile_pci.inc"
#include "hostile.inc"

    hostile_start
#include "hostile_rings.inc"
#include "hostile_registers.inc"
#include "hostile_function.inc"
    hostile_end

    hostile_routines
    transport_routines
