/* The checks: each prints its rows of the table. All waits are bounded. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "smp.h"

#define NO_DEVICE "no self-test device"

/* `device` says whether the self-test device is there. */
void check_exits(bool device);
void check_interrupts(bool device, const struct cpus *cpus);
void check_doorbell(bool device);
