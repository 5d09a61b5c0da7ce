/* Intel SDM vol. 3, "Advanced Programmable Interrupt Controller (APIC)"; Intel 82093AA (IOAPIC). */
#include "apic.h"

#include "clock.h"
#include "trap.h"

#define LEAF_FEATURES 1
#define ECX_X2APIC (1u << 21)
#define ECX_TSC_DEADLINE (1u << 24)

#define MSR_APIC_BASE 0x1b
#define APIC_BASE_X2APIC (1u << 10)
#define APIC_BASE_ENABLE (1u << 11)

#define SPURIOUS_ENABLE (1u << 8)

#define MSR_TSC_DEADLINE 0x6e0
#define TIMER_ONE_SHOT 0u
#define TIMER_TSC_DEADLINE (2u << 17)
#define LVT_MASKED (1u << 16)
#define DIVIDE_BY_1 0xbu
#define CALIBRATION_US 500

#define IOAPIC_MMIO 0xfec00000u
#define IOAPIC_SELECT 0x00
#define IOAPIC_WINDOW 0x10
#define IOAPIC_REDIRECTION 0x10 /* two registers a pin */
#define REDIRECTION_MASKED (1u << 16)

#define PIC_MASTER_DATA 0x21
#define PIC_SLAVE_DATA 0xa1

bool x2apic;

static bool has_deadline;
static uint32_t counts_per_tick; /* of the timer to the TSC's, times 2^16 */

void pic_mask(void)
{
    outb(PIC_MASTER_DATA, 0xff);
    outb(PIC_SLAVE_DATA, 0xff);
}

void apic_enable(void)
{
    uint64_t base = rdmsr(MSR_APIC_BASE) | APIC_BASE_ENABLE;

    wrmsr(MSR_APIC_BASE, base);
    if (cpuid(LEAF_FEATURES, 0).ecx & ECX_X2APIC) {
        wrmsr(MSR_APIC_BASE, base | APIC_BASE_X2APIC);
        x2apic = true;
    }
    apic_write(APIC_SPURIOUS, SPURIOUS_ENABLE | VECTOR_SPURIOUS);
}

uint32_t apic_id(void)
{
    uint32_t id = apic_read(APIC_ID);

    return x2apic ? id : id >> 24;
}

void apic_send(uint32_t destination, uint32_t command)
{
    if (x2apic) {
        wrmsr(APIC_MSRS + APIC_ICR_LOW / 16, (uint64_t)destination << 32 | command);
        return;
    }
    /* A virtual APIC takes the command at once: the delivery status has not to be waited for. */
    apic_write(APIC_ICR_HIGH, destination << 24);
    apic_write(APIC_ICR_LOW, command);
}

bool apic_timer_init(uint8_t vector)
{
    has_deadline = cpuid(LEAF_FEATURES, 0).ecx & ECX_TSC_DEADLINE;
    if (has_deadline) {
        apic_write(APIC_LVT_TIMER, TIMER_TSC_DEADLINE | vector);
        return true;
    }
    apic_write(APIC_LVT_TIMER, TIMER_ONE_SHOT | LVT_MASKED | vector);
    apic_write(APIC_DIVIDE, DIVIDE_BY_1);
    uint64_t start = rdtsc();
    apic_write(APIC_INITIAL_COUNT, UINT32_MAX);
    while (rdtsc() - start < clock_ticks(CALIBRATION_US))
        pause();
    uint64_t counted = UINT32_MAX - apic_read(APIC_CURRENT_COUNT);
    counts_per_tick = (uint32_t)((counted << 16) / (rdtsc() - start));
    apic_write(APIC_INITIAL_COUNT, 0);
    apic_write(APIC_LVT_TIMER, TIMER_ONE_SHOT | vector);
    return false;
}

void apic_timer_arm(uint64_t deadline)
{
    if (has_deadline) {
        wrmsr(MSR_TSC_DEADLINE, deadline);
        return;
    }
    uint64_t now = rdtsc();
    uint64_t counts = now < deadline ? (deadline - now) * counts_per_tick >> 16 : 0;

    /* 0 would stop the timer. */
    if (counts == 0)
        counts = 1;
    apic_write(APIC_INITIAL_COUNT, counts > UINT32_MAX ? UINT32_MAX : (uint32_t)counts);
}

static void ioapic_write(uint32_t index, uint32_t value)
{
    mmio_write(IOAPIC_MMIO + IOAPIC_SELECT, index);
    mmio_write(IOAPIC_MMIO + IOAPIC_WINDOW, value);
}

void ioapic_connect(uint32_t pin, uint8_t vector, uint32_t destination)
{
    uint32_t index = IOAPIC_REDIRECTION + 2 * pin;

    ioapic_write(index + 1, destination << 24);
    /* All else zero: fixed delivery, physical destination, active high, edge. */
    ioapic_write(index, vector);
}

void ioapic_disconnect(uint32_t pin)
{
    ioapic_write(IOAPIC_REDIRECTION + 2 * pin, REDIRECTION_MASKED);
}
