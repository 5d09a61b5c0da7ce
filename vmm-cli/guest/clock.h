/* The clock: the TSC, and what KVM says about its frequency and the time of day. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

void clock_init(void);

/* Whether kvmclock is there. Without it the frequency is unknown, and figures are in ticks of the TSC. */
bool clock_known(void);
bool clock_stable(void);
uint32_t clock_khz(void);
/* Seconds since 1970, UTC; only with kvmclock. */
uint64_t clock_wall_seconds(void);

/* At least `us` microseconds in ticks of the TSC. */
uint64_t clock_ticks(uint64_t us);
/* Ticks in ns, or unchanged when the frequency is unknown. */
uint64_t clock_ns(uint64_t ticks);
