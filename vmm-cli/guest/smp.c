/* Intel SDM vol. 3, "Multiple-Processor (MP) Initialization". */
#include "smp.h"

#include "apic.h"
#include "clock.h"
#include "layout.h"
#include "trap.h"
#include "x86.h"

#define LEAF_MAX 0
#define LEAF_FEATURES 1
#define LEAF_TOPOLOGY 0xb
#define SUBLEAF_PACKAGE 1
#define EDX_HTT (1u << 28)

#define MAX_IDS 256
#define WAIT_US 10000000

extern const uint8_t trampoline[], trampoline_end[];

static uint32_t ids_seen[MAX_IDS / 32];
static uint32_t duplicates;
static uint32_t online;
static uint32_t partner;

/* How many logical processors the package has: exact in leaf 0xb, a bound in leaf 1. */
static uint32_t expected_cpus(void)
{
    if (cpuid(LEAF_MAX, 0).eax >= LEAF_TOPOLOGY) {
        uint32_t count = cpuid(LEAF_TOPOLOGY, SUBLEAF_PACKAGE).ebx & 0xffff;
        if (count)
            return count;
    }
    struct cpuid features = cpuid(LEAF_FEATURES, 0);
    return features.edx & EDX_HTT ? features.ebx >> 16 & 0xff : 1;
}

/* Enters this CPU in the list. What it did before is visible to who sees the count. */
static void arrive(void)
{
    uint32_t id = apic_id();
    uint32_t bit = 1u << id % 32;

    if (id >= MAX_IDS || __atomic_fetch_or(&ids_seen[id / 32], bit, __ATOMIC_RELAXED) & bit)
        __atomic_fetch_add(&duplicates, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&online, 1, __ATOMIC_RELEASE);
}

/* Called by each AP on its own stack, `order` counting from 0. */
_Noreturn void ap_main(uint32_t order)
{
    traps_load();
    apic_enable();
    if (order != 0) {
        arrive();
        halt_forever();
    }
    partner = apic_id();
    arrive();
    for (;;)
        halt_for_interrupt();
}

struct cpus smp_start(void)
{
    struct cpus cpus = {.expected = expected_cpus(), .online = 1};

    arrive();
    if (cpus.expected > 1) {
        volatile uint8_t *to = (volatile uint8_t *)TRAMPOLINE;
        for (const uint8_t *from = trampoline; from < trampoline_end; from++)
            *to++ = *from;

        /* The SDM's delays are for real parts: a virtual APIC keeps an INIT and the SIPI that follows. */
        uint64_t start = rdtsc();
        apic_send(0, ICR_ALL_BUT_SELF | ICR_INIT);
        apic_send(0, ICR_ALL_BUT_SELF | ICR_STARTUP(TRAMPOLINE >> 12));
        do {
            pause();
            cpus.online = __atomic_load_n(&online, __ATOMIC_ACQUIRE);
            cpus.ticks = rdtsc() - start;
        } while (cpus.online < cpus.expected && cpus.ticks < clock_ticks(WAIT_US));
    }
    cpus.unique = __atomic_load_n(&duplicates, __ATOMIC_RELAXED) == 0;
    return cpus;
}

uint32_t smp_partner(void)
{
    return partner;
}
