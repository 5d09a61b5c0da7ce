/* A batch is long against the TSC's resolution and short against a scheduler's time slice. */
#include "measure.h"

#include "clock.h"
#include "x86.h"

#define BATCH_US 100
#define TRIAL_USES 4
#define MAX_USES 4096

static void sort(uint64_t *values)
{
    for (unsigned i = 1; i < SAMPLES; i++) {
        uint64_t value = values[i];
        unsigned at = i;
        for (; at > 0 && values[at - 1] > value; at--)
            values[at] = values[at - 1];
        values[at] = value;
    }
}

struct figures figures_of(uint64_t *ticks, uint32_t uses)
{
    sort(ticks);
    return (struct figures){
        .best = clock_ns(ticks[0] * 10) / uses,
        .median = clock_ns(ticks[SAMPLES / 2] * 10) / uses,
    };
}

static uint64_t time_of(void (*batch)(uint32_t), uint32_t uses)
{
    uint64_t start = rdtsc();

    batch(uses);
    return rdtsc() - start;
}

struct figures measure(void (*batch)(uint32_t))
{
    uint64_t ticks[SAMPLES];
    uint64_t fitting = clock_ticks(BATCH_US) * TRIAL_USES / (time_of(batch, TRIAL_USES) + 1);
    uint32_t uses = fitting < TRIAL_USES ? TRIAL_USES : fitting > MAX_USES ? MAX_USES : (uint32_t)fitting;

    for (unsigned i = 0; i < SAMPLES; i++)
        ticks[i] = time_of(batch, uses);
    return figures_of(ticks, uses);
}
