/* The other processors: started, counted, and parked. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct cpus {
    uint32_t expected; /* by CPUID */
    uint32_t online;   /* the boot processor included */
    bool unique;       /* no two have one APIC id */
    uint64_t ticks;    /* from INIT to the last arrival */
};

/* Starts all APs and waits for them, with a bound. Overwrites what is at TRAMPOLINE. */
struct cpus smp_start(void);

/* The APIC id of an AP that sleeps with interrupts on and answers VECTOR_PING, if any AP is online. */
uint32_t smp_partner(void);
