#include "machine.h"

#include <stdbool.h>

#include "apic.h"
#include "clock.h"
#include "line.h"
#include "x86.h"

#define LEAF_MAX 0
#define LEAF_FEATURES 1
#define ECX_HYPERVISOR (1u << 31)
#define LEAF_HYPERVISOR 0x40000000

/* Xen include/public/arch-x86/hvm/start_info.h */
#define START_MAGIC 0x336ec578
#define VERSION_WITH_MEMORY_MAP 1
#define MEMORY_TYPE_RAM 1

#define MAPPED_END (1ull << 32)
#define MIB (1ull << 20)
#define SECONDS_PER_DAY 86400
#define CMDLINE_SHOWN 60
#define LABELS_END 17

struct start_info {
    uint32_t magic;
    uint32_t version;
    uint32_t flags;
    uint32_t modules;
    uint64_t module_list;
    uint64_t cmdline;
    uint64_t rsdp;
    uint64_t memory_map;
    uint32_t memory_map_entries;
    uint32_t reserved;
};

struct memory_map_entry {
    uint64_t address;
    uint64_t size;
    uint32_t type;
    uint32_t reserved;
};

static struct {
    uint64_t low, high; /* bytes of RAM below and above 4 GiB */
    bool has_map;
    char cmdline[CMDLINE_SHOWN + 1];
} told;

static void read_memory_map(const struct start_info *info)
{
    const struct memory_map_entry *entry = (const void *)(uintptr_t)info->memory_map;

    for (uint32_t i = 0; i < info->memory_map_entries; i++, entry++) {
        if (entry->type != MEMORY_TYPE_RAM)
            continue;
        if (entry->address < MAPPED_END)
            told.low += entry->size;
        else
            told.high += entry->size;
    }
    told.has_map = true;
}

void machine_read(uintptr_t start_info)
{
    const struct start_info *info = (const void *)start_info;

    if (info->magic != START_MAGIC)
        return;
    if (info->version >= VERSION_WITH_MEMORY_MAP && info->memory_map && info->memory_map < MAPPED_END)
        read_memory_map(info);
    if (info->cmdline && info->cmdline < MAPPED_END) {
        const char *text = (const char *)(uintptr_t)info->cmdline;
        for (unsigned i = 0; i < CMDLINE_SHOWN && text[i]; i++)
            told.cmdline[i] = text[i] < ' ' || text[i] > '~' ? '.' : text[i];
    }
}

static void label(const char *text)
{
    line_text("  ");
    line_text(text);
    line_to_column(LABELS_END);
}

/* Four characters of a name in a CPUID register. */
static void name_part(uint32_t part)
{
    for (; part; part >>= 8)
        line_char((char)part);
}

static void print_cpu(void)
{
    struct cpuid leaf = cpuid(LEAF_MAX, 0);

    label("CPU");
    name_part(leaf.ebx);
    name_part(leaf.edx);
    name_part(leaf.ecx);
    if (cpuid(LEAF_FEATURES, 0).ecx & ECX_HYPERVISOR) {
        leaf = cpuid(LEAF_HYPERVISOR, 0);
        line_text(", hypervisor ");
        name_part(leaf.ebx);
        name_part(leaf.ecx);
        name_part(leaf.edx);
    }
    line_text(x2apic ? ", x2APIC" : ", xAPIC");
    line_end();
}

/* Rounded up: a PC's first MiB is not all RAM, and firmware may keep a little. */
static void mib(uint64_t bytes)
{
    line_number((bytes + MIB - 1) / MIB);
    line_text(" MiB");
}

static void print_memory(void)
{
    label("memory");
    if (!told.has_map) {
        line_text("not told by the loader");
    } else {
        mib(told.low + told.high);
        line_text(" RAM");
        if (told.high) {
            line_text(", ");
            mib(told.high);
            line_text(" of it above 4 GiB");
        }
    }
    line_end();
}

static bool is_leap(uint32_t year)
{
    return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
}

static void date(uint64_t seconds)
{
    static const uint8_t lengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    uint32_t days = (uint32_t)(seconds / SECONDS_PER_DAY);
    uint32_t year = 1970, month = 0;

    for (uint32_t length; days >= (length = is_leap(year) ? 366 : 365); days -= length)
        year++;
    for (uint32_t length; days >= (length = lengths[month] + (month == 1 && is_leap(year))); days -= length)
        month++;
    line_digits(year, 4);
    line_char('-');
    line_digits(month + 1, 2);
    line_char('-');
    line_digits(days + 1, 2);
}

static void time_of_day(uint64_t seconds)
{
    uint32_t rest = (uint32_t)(seconds % SECONDS_PER_DAY);

    line_digits(rest / 3600, 2);
    line_char(':');
    line_digits(rest / 60 % 60, 2);
    line_char(':');
    line_digits(rest % 60, 2);
}

static void print_clock(void)
{
    label("clock");
    if (!clock_known()) {
        line_text("no kvmclock: the figures below are ticks of the TSC");
        line_end();
        return;
    }
    uint64_t now = clock_wall_seconds();
    line_text("TSC ");
    line_number(clock_khz() / 1000);
    line_char('.');
    line_digits(clock_khz() % 1000, 3);
    line_text(clock_stable() ? " MHz, kvmclock stable, " : " MHz, kvmclock, ");
    date(now);
    line_char(' ');
    time_of_day(now);
    line_text(" UTC");
    line_end();
}

void machine_print(void)
{
    line_text("Default guest of vmm-cli: what this machine has, and what it costs.");
    line_end();
    line_end();
    print_cpu();
    print_memory();
    print_clock();
    if (told.cmdline[0]) {
        label("command line");
        line_text(told.cmdline);
        line_end();
    }
    line_end();
}
