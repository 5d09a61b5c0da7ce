/* Checks of interrupts: the timer's, the device's through the IOAPIC, and from CPU to CPU. */
#include "checks.h"

#include "apic.h"
#include "clock.h"
#include "device.h"
#include "line.h"
#include "table.h"
#include "trap.h"

#define WAIT_US 5000000
#define SETTLE_US 200
#define TIMER_US 100
/* The host keeps the timer by another clock than the TSC, or the length of its ticks was only measured. */
#define EARLY_US 5

#define COM1_LINE_STATUS 0x3fd

/* Set once the timer is seen to work; from then on waits sleep, and the timer wakes those in vain. */
static bool timer_works;

static uint64_t deadline; /* of the present wait */

/*
 * Takes an interrupt that is pending, and does not sleep. Reading a port, whichever, is an exit to the
 * monitor: where the guest is interpreted, pending interrupts are noticed on the way back.
 */
static void exit_for_interrupt(void)
{
    interrupts_on();
    inb(COM1_LINE_STATUS);
    interrupts_off();
}

/* To be called before the cause of an interrupt, so that no measurement has a part of this. */
static void expect_interrupt(uint64_t us)
{
    deadline = rdtsc() + clock_ticks(us);
    if (timer_works)
        apic_timer_arm(deadline);
    interrupts_on();
}

/* Waits until `*counter` is `value`; false if that is not so by the deadline. Leaves interrupts off. */
static bool wait_for_count(const volatile uint32_t *counter, uint32_t value)
{
    /* Off: else an interrupt could come between the look at the counter and the sleep. */
    interrupts_off();
    while (*counter != value) {
        if (rdtsc() >= deadline)
            return false;
        if (timer_works) {
            halt_for_interrupt();
            /* Once more, should it have been the timer, too early. */
            apic_timer_arm(deadline);
        } else {
            exit_for_interrupt();
        }
    }
    return true;
}

/*
 * Prints the row of a mechanism. `cause` makes it interrupt once, and returns the time from which that is
 * counted. An interrupt too many or too early is a failure, as is one that does not come.
 */
static bool check(const char *mechanism, const volatile struct arrivals *arrivals, uint64_t (*cause)(void),
                  const char *note)
{
    uint64_t ticks[SAMPLES];
    uint32_t before = arrivals->count;
    uint32_t taken = 0;
    uint64_t early = 0;

    for (; taken < SAMPLES; taken++) {
        expect_interrupt(WAIT_US);
        uint64_t from = cause();
        if (!wait_for_count(&arrivals->count, before + taken + 1))
            break;
        uint64_t at = arrivals->last;
        if (at + clock_ticks(EARLY_US) < from) {
            early = from - at;
            break;
        }
        ticks[taken] = at < from ? 0 : at - from;
    }
    /* One too many would come now. */
    expect_interrupt(SETTLE_US);
    wait_for_count(&arrivals->count, before + taken + 1);
    uint32_t count = arrivals->count - before;

    if (taken == SAMPLES && count == SAMPLES) {
        struct figures figures = figures_of(ticks, 1);
        table_row(mechanism, PASSED, &figures, note);
        return true;
    }
    table_begin(mechanism, FAILED, NULL);
    if (early) {
        line_text("early by ");
        line_number(clock_ns(early));
    } else {
        line_number(count);
        line_text(" came, not ");
        line_number(taken < SAMPLES ? taken + 1 : SAMPLES);
    }
    line_end();
    return false;
}

static uint64_t arm_timer(void)
{
    uint64_t due = rdtsc() + clock_ticks(TIMER_US);

    apic_timer_arm(due);
    return due;
}

static uint64_t raise(void)
{
    uint64_t start = rdtsc();

    device_write(DEVICE_RAISE, 0);
    return start;
}

static uint64_t ring(void)
{
    uint64_t start = rdtsc();

    device_write(DEVICE_DOORBELL, 0);
    return start;
}

static uint64_t ping(void)
{
    uint64_t start = rdtsc();

    apic_send(smp_partner(), ICR_FIXED(VECTOR_PING));
    return start;
}

static void check_device(void)
{
    uint32_t pin = device_read(DEVICE_LINE);

    ioapic_connect(pin, VECTOR_DEVICE, apic_id());
    check("interrupt", &device_interrupts, raise, "MMIO write to handler");
    device_write(DEVICE_CONTROL, DEVICE_INTERRUPT_ON_RING);
    check("doorbell interrupt", &device_interrupts, ring, "ring to handler");
    device_write(DEVICE_CONTROL, 0);
    ioapic_disconnect(pin);
}

void check_interrupts(bool device, const struct cpus *cpus)
{
    bool deadline_mode = apic_timer_init(VECTOR_TIMER);

    timer_works = check("timer", &timer_interrupts, arm_timer,
                        deadline_mode ? "late by, TSC deadline" : "late by, one-shot");
    if (device) {
        check_device();
    } else {
        table_row("interrupt", NOT_PRESENT, NULL, NO_DEVICE);
        table_row("doorbell interrupt", NOT_PRESENT, NULL, NO_DEVICE);
    }
    if (cpus->online > 1)
        check("IPI", &pongs, ping, "to a halted CPU and back");
    else
        table_row("IPI", NOT_PRESENT, NULL, "there is one CPU");
}
