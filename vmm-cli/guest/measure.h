/* Figures: how long a mechanism takes, as the best and the median of some measurements, not one mean. */
#pragma once

#include <stdint.h>

#define SAMPLES 9

/* In tenths of ns (of ticks when the clock is not known), for one use of the mechanism. */
struct figures {
    uint64_t best;
    uint64_t median;
};

/* Of SAMPLES measurements in ticks, each of `uses` uses. Sorts `ticks`. */
struct figures figures_of(uint64_t *ticks, uint32_t uses);

/* Times SAMPLES calls of `batch`, which uses the mechanism `uses` times: as often as its speed suggests. */
struct figures measure(void (*batch)(uint32_t uses));
