/* The interrupt controllers: each CPU's local APIC and the IOAPIC. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "x86.h"

/* Offsets of local APIC registers; as MSRs they are 0x800 + offset / 16. */
#define APIC_ID 0x020
#define APIC_EOI 0x0b0
#define APIC_SPURIOUS 0x0f0
#define APIC_ICR_LOW 0x300
#define APIC_ICR_HIGH 0x310
#define APIC_LVT_TIMER 0x320
#define APIC_INITIAL_COUNT 0x380
#define APIC_CURRENT_COUNT 0x390
#define APIC_DIVIDE 0x3e0

#define APIC_MMIO 0xfee00000u
#define APIC_MSRS 0x800u

/* Interrupt commands: the low half of the ICR. */
#define ICR_FIXED(vector) (vector)
#define ICR_INIT 0x4500u                  /* level asserted */
#define ICR_STARTUP(page) (0x4600u | (page))
#define ICR_ALL_BUT_SELF 0xc0000u

/* Whether the CPUs are in x2APIC mode, where the registers are MSRs. */
extern bool x2apic;

/* Masks the two 8259A, whose vectors nobody has set: the pins of the IOAPIC are theirs too. */
void pic_mask(void);

/* Enables this CPU's local APIC, in x2APIC mode if there is one. */
void apic_enable(void);
uint32_t apic_id(void);
/* Sends `command` to the CPU with the id `destination`. */
void apic_send(uint32_t destination, uint32_t command);

/* Sets the timer up; false when the CPU has no TSC deadline and it counts ticks of its own instead. */
bool apic_timer_init(uint8_t vector);
/* Interrupts once: when the TSC reaches `deadline`, or before if the timer cannot count as far as that. */
void apic_timer_arm(uint64_t deadline);

/* Sends the edges of an IOAPIC pin to the CPU with the id `destination`. */
void ioapic_connect(uint32_t pin, uint8_t vector, uint32_t destination);
void ioapic_disconnect(uint32_t pin);

static inline uint32_t apic_read(uint32_t offset)
{
    return x2apic ? (uint32_t)rdmsr(APIC_MSRS + offset / 16) : mmio_read(APIC_MMIO + offset);
}

static inline void apic_write(uint32_t offset, uint32_t value)
{
    if (x2apic)
        wrmsr(APIC_MSRS + offset / 16, value);
    else
        mmio_write(APIC_MMIO + offset, value);
}

static inline void apic_eoi(void)
{
    apic_write(APIC_EOI, 0);
}
