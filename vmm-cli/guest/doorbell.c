/* The check of the doorbell: every ring is counted. */
#include "checks.h"

#include "clock.h"
#include "device.h"
#include "line.h"
#include "table.h"

#define WAIT_US 5000000

static uint32_t rung;

static void ring(uint32_t uses)
{
    rung += uses;
    while (uses--)
        device_write(DEVICE_DOORBELL, 0);
}

void check_doorbell(bool device)
{
    static const char mechanism[] = "doorbell";

    if (!device) {
        table_row(mechanism, NOT_PRESENT, NULL, NO_DEVICE);
        return;
    }
    uint32_t before = device_read(DEVICE_RINGS);
    struct figures figures = measure(ring);
    uint64_t start = rdtsc();
    uint32_t counted;
    do
        counted = device_read(DEVICE_RINGS) - before;
    while (counted != rung && rdtsc() - start < clock_ticks(WAIT_US));

    table_begin(mechanism, counted == rung ? PASSED : FAILED, &figures);
    line_number(counted);
    line_text(" of ");
    line_number(rung);
    line_text(" rings counted");
    line_end();
}
