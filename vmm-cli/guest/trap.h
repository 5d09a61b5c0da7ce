/* Traps: the interrupt descriptor table and what its gates lead to. */
#pragma once

#include <stdint.h>

#define VECTOR_DEVICE 0x40
#define VECTOR_TIMER 0x41
#define VECTOR_PING 0x42 /* to an AP, which answers with a pong */
#define VECTOR_PONG 0x43 /* to the boot processor */
#define VECTOR_SPURIOUS 0xff

/* What a handler leaves behind. Written by one CPU only. */
struct arrivals {
    uint32_t count;
    uint64_t last; /* TSC */
};

extern volatile struct arrivals device_interrupts;
extern volatile struct arrivals timer_interrupts;
extern volatile struct arrivals pongs;

/* Fills the table; `boot_id` is the APIC id of the CPU that calls. */
void traps_init(uint32_t boot_id);
/* Loads the table on this CPU. */
void traps_load(void);
