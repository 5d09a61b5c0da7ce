/* The end of the run. */
#pragma once

#include <stdint.h>

#define POWER_OFF_PASSED 0
#define POWER_OFF_FAILED 1

/* Ends the machine with `value`; where no port does that, stops the CPU. */
_Noreturn void power_off(uint8_t value);
