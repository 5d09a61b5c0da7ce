/* The self-test device of the monitor: a register for each mechanism (vmm-devices/src/selftest.rs). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "x86.h"

#define DEVICE_BASE 0xd0000000u
#define DEVICE_MAGIC_VALUE 0x54534d56u /* "VMST" */
#define DEVICE_VERSION_VALUE 1u

#define DEVICE_MAGIC 0x00
#define DEVICE_VERSION 0x04
#define DEVICE_LINE 0x08
#define DEVICE_PORTS 0x0c
#define DEVICE_SCRATCH 0x10
#define DEVICE_RAISE 0x14
#define DEVICE_CONTROL 0x18
#define DEVICE_RINGS 0x1c
#define DEVICE_DOORBELL 0x20

#define DEVICE_INTERRUPT_ON_RING 1u /* in DEVICE_CONTROL */

/* From the first port on. */
#define PORT_SCRATCH 0
#define PORT_STRING 1
#define PORT_SUM 2

static inline uint32_t device_read(uint32_t offset)
{
    return mmio_read(DEVICE_BASE + offset);
}

static inline void device_write(uint32_t offset, uint32_t value)
{
    mmio_write(DEVICE_BASE + offset, value);
}

static inline bool device_present(void)
{
    return device_read(DEVICE_MAGIC) == DEVICE_MAGIC_VALUE &&
           device_read(DEVICE_VERSION) == DEVICE_VERSION_VALUE;
}
