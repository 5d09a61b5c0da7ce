/* KVM's clock, Linux Documentation/virt/kvm/x86/msr.rst and cpuid.rst. */
#include "clock.h"

#include "x86.h"

#define LEAF_HYPERVISOR 0x40000000
#define LEAF_KVM_FEATURES 0x40000001
#define FEATURE_CLOCKSOURCE2 (1u << 3)  /* eax: the MSRs below */
#define FEATURE_CLOCK_STABLE (1u << 24) /* eax: STABLE_FLAG means something */
#define MSR_WALL_CLOCK 0x4b564d00
#define MSR_SYSTEM_TIME 0x4b564d01
#define SYSTEM_TIME_ENABLE 1u
#define STABLE_FLAG 1u

#define MAX_TRIES 100000
#define NS_PER_SECOND 1000000000u
/* No TSC is faster: a wait of so many ticks is never too short. */
#define FASTEST_KHZ 6000000u

/* ns = ((tsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul >> 32, plus system_time. */
struct system_time {
    uint32_t version;
    uint32_t pad0;
    uint64_t tsc_timestamp;
    uint64_t system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags;
    uint8_t pad[2];
};

/* The time of day at system time 0, written by the WRMSR itself. */
struct wall_clock {
    uint32_t version;
    uint32_t seconds;
    uint32_t nanoseconds;
};

static volatile struct system_time shared_time __attribute__((aligned(64)));
static volatile struct wall_clock shared_wall __attribute__((aligned(64)));

static bool known;
static struct system_time boot; /* read once: the frequency does not change while a guest runs on one host */
static uint32_t khz = FASTEST_KHZ;

static bool is_kvm(void)
{
    struct cpuid leaf = cpuid(LEAF_HYPERVISOR, 0);

    /* "KVMKVMKVM" and three NULs. */
    return leaf.ebx == 0x4b4d564b && leaf.ecx == 0x564b4d56 && leaf.edx == 0x4d;
}

/*
 * Reads the shared time into `boot`. The host makes the version odd while it writes, and may write it first
 * only some instructions after the WRMSR that asked for it.
 */
static bool read_time(void)
{
    for (unsigned tries = 0; tries < MAX_TRIES; tries++) {
        boot = shared_time;
        if (boot.version && !(boot.version & 1) && boot.version == shared_time.version)
            return boot.tsc_to_system_mul;
        pause();
    }
    return false;
}

static uint64_t scale(uint64_t ticks)
{
    ticks = boot.tsc_shift < 0 ? ticks >> -boot.tsc_shift : ticks << boot.tsc_shift;
    return (uint64_t)((unsigned __int128)ticks * boot.tsc_to_system_mul >> 32);
}

void clock_init(void)
{
    if (!is_kvm())
        return;
    uint32_t features = cpuid(LEAF_KVM_FEATURES, 0).eax;
    if (!(features & FEATURE_CLOCKSOURCE2))
        return;
    wrmsr(MSR_WALL_CLOCK, (uintptr_t)&shared_wall);
    wrmsr(MSR_SYSTEM_TIME, (uintptr_t)&shared_time | SYSTEM_TIME_ENABLE);
    known = read_time();
    if (!known)
        return;
    if (!(features & FEATURE_CLOCK_STABLE))
        boot.flags &= (uint8_t)~STABLE_FLAG;
    /* 10^6 ns take (10^6 << 32) / mul ticks that were shifted by tsc_shift. */
    uint64_t shifted = (1000000ull << 32) / boot.tsc_to_system_mul;
    khz = (uint32_t)(boot.tsc_shift < 0 ? shifted << -boot.tsc_shift : shifted >> boot.tsc_shift);
}

bool clock_known(void)
{
    return known;
}

bool clock_stable(void)
{
    return boot.flags & STABLE_FLAG;
}

uint32_t clock_khz(void)
{
    return khz;
}

uint64_t clock_wall_seconds(void)
{
    uint64_t since_boot = boot.system_time + scale(rdtsc() - boot.tsc_timestamp);

    return shared_wall.seconds + (shared_wall.nanoseconds + since_boot) / NS_PER_SECOND;
}

uint64_t clock_ticks(uint64_t us)
{
    return us * khz / 1000;
}

uint64_t clock_ns(uint64_t ticks)
{
    return known ? scale(ticks) : ticks;
}
