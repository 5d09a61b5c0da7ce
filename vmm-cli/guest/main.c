/* The default guest: brings the machine up, checks and measures each mechanism it finds, and powers off. */
#include <stdbool.h>
#include <stdint.h>

#include "apic.h"
#include "checks.h"
#include "clock.h"
#include "device.h"
#include "line.h"
#include "machine.h"
#include "power.h"
#include "smp.h"
#include "table.h"
#include "trap.h"
#include "x86.h"

/* What a turn of a loop costs tells whether the host runs the guest's code or interprets it. */
static void empty_loop(uint32_t uses)
{
    __asm__ volatile("1: dec %0\n\tjnz 1b" : "+r"(uses));
}

static void report_cpus(const struct cpus *cpus)
{
    bool passed = cpus->online == cpus->expected && cpus->unique;

    table_begin("CPU start", passed ? PASSED : FAILED, NULL);
    if (!cpus->unique)
        line_text("APIC ids repeat, ");
    line_number(cpus->online);
    line_text(" of ");
    line_number(cpus->expected);
    if (cpus->expected > 1 && clock_known()) {
        line_text(" in ");
        line_number(clock_ns(cpus->ticks) / 1000);
        line_text(" us");
    }
    line_end();
}

/* Called by start.S on the boot processor. */
_Noreturn void guest_main(uintptr_t start_info)
{
    uint64_t start = rdtsc();

    machine_read(start_info);
    pic_mask();
    apic_enable();
    traps_init(apic_id());
    clock_init();
    machine_print();

    table_start();
    struct figures loop = measure(empty_loop);
    table_row("empty loop", NOT_A_CHECK, &loop, "a turn, two instructions");
    struct cpus cpus = smp_start();
    report_cpus(&cpus);

    bool device = device_present();
    check_exits(device);
    check_doorbell(device);
    check_interrupts(device, &cpus);

    bool passed = table_end(rdtsc() - start);
    power_off(passed ? POWER_OFF_PASSED : POWER_OFF_FAILED);
}
