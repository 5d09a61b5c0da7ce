/* Checks of exits to the monitor: ports, device registers, string input and output. */
#include "checks.h"

#include "device.h"
#include "line.h"
#include "table.h"

#define PATTERN 0xa5u
#define WIDE_PATTERN 0xc3a5f096u

/* The string port counts from 0 to 255. In 8-byte words: the first, and the step to each next. */
#define STRING_INPUT 256
#define STRING_FIRST 0x0706050403020100ull
#define STRING_STEP 0x0808080808080808ull
/* Output leaves the guest one element at a time on most hosts. */
#define STRING_OUTPUT 64

static uint16_t ports;
static uint64_t difference; /* bits in which any value read differed from what was expected */

static void report(const char *mechanism, const struct figures *figures, const char *note)
{
    if (!difference) {
        table_row(mechanism, PASSED, figures, note);
        return;
    }
    table_begin(mechanism, FAILED, figures);
    line_text("wrong bits ");
    line_hex(difference);
    line_end();
}

/* The loops are short: where the guest is interpreted, an instruction costs up to a tenth of an exit. */

static void write_port(uint32_t uses)
{
    uint16_t port = ports + PORT_SCRATCH;

    while (uses--)
        outb(port, PATTERN);
}

static void read_port(uint32_t uses)
{
    uint16_t port = ports + PORT_SCRATCH;
    uint8_t wrong = 0;

    while (uses--)
        wrong |= inb(port) ^ PATTERN;
    difference |= wrong;
}

static void write_register(uint32_t uses)
{
    while (uses--)
        device_write(DEVICE_SCRATCH, WIDE_PATTERN);
}

static void read_register(uint32_t uses)
{
    uint32_t wrong = 0;

    while (uses--)
        wrong |= device_read(DEVICE_SCRATCH) ^ WIDE_PATTERN;
    difference |= wrong;
}

static void check_ports(void)
{
    outb(ports + PORT_SCRATCH, (uint8_t)~PATTERN);
    struct figures writes = measure(write_port);
    difference = inb(ports + PORT_SCRATCH) ^ PATTERN;
    report("port write", &writes, "1 byte, value kept");

    struct figures reads = measure(read_port);
    report("port read", &reads, "1 byte");
}

static void check_registers(void)
{
    device_write(DEVICE_SCRATCH, ~WIDE_PATTERN);
    struct figures writes = measure(write_register);
    difference = device_read(DEVICE_SCRATCH) ^ WIDE_PATTERN;
    report("MMIO write", &writes, "4 bytes, value kept");

    struct figures reads = measure(read_register);
    report("MMIO read", &reads, "4 bytes");
}

static void check_string_input(void)
{
    static uint64_t string[STRING_INPUT / sizeof(uint64_t)];
    uint64_t ticks[SAMPLES];

    difference = 0;
    for (unsigned i = 0; i < SAMPLES; i++) {
        for (unsigned j = 0; j < sizeof string / sizeof *string; j++)
            string[j] = ~(STRING_FIRST + j * STRING_STEP);
        outb(ports + PORT_SUM, 0); /* restarts the string */
        uint64_t start = rdtsc();
        rep_insb(ports + PORT_STRING, string, sizeof string);
        ticks[i] = rdtsc() - start;
        for (unsigned j = 0; j < sizeof string / sizeof *string; j++)
            difference |= string[j] ^ (STRING_FIRST + j * STRING_STEP);
    }
    struct figures figures = figures_of(ticks, STRING_INPUT);
    report("string input", &figures, "a byte of rep insb, 256");
}

static void check_string_output(void)
{
    static uint8_t string[STRING_OUTPUT];
    uint64_t ticks[SAMPLES];
    uint8_t sum = 0;

    difference = 0;
    for (unsigned j = 0; j < STRING_OUTPUT; j++) {
        string[j] = (uint8_t)(3 * j + 1);
        sum += string[j];
    }
    for (unsigned i = 0; i < SAMPLES; i++) {
        outb(ports + PORT_SUM, 0);
        uint64_t start = rdtsc();
        rep_outsb(ports + PORT_STRING, string, sizeof string);
        ticks[i] = rdtsc() - start;
        difference |= inb(ports + PORT_SUM) ^ sum;
    }
    struct figures figures = figures_of(ticks, STRING_OUTPUT);
    report("string output", &figures, "a byte of rep outsb, 64");
}

void check_exits(bool device)
{
    static const char *const mechanisms[] = {
        "port write", "port read", "MMIO write", "MMIO read", "string input", "string output",
    };

    if (!device) {
        for (unsigned i = 0; i < sizeof mechanisms / sizeof *mechanisms; i++)
            table_row(mechanisms[i], NOT_PRESENT, NULL, NO_DEVICE);
        return;
    }
    ports = (uint16_t)device_read(DEVICE_PORTS);
    check_ports();
    check_registers();
    check_string_input();
    check_string_output();
}
