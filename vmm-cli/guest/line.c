/* Text is formatted without a library, and sent by one instruction a line. */
#include "line.h"

#include "x86.h"

/* A 16550's data port. A monitor's UART has no wire: its speed is not set, and it is never waited for. */
#define COM1_DATA 0x3f8

#define COLUMNS 80
#define MAX_DIGITS 20 /* of 2^64 - 1 */

static char buffer[COLUMNS + 2];
static unsigned length;

void line_char(char c)
{
    if (length < COLUMNS)
        buffer[length++] = c;
}

void line_text(const char *text)
{
    while (*text)
        line_char(*text++);
}

/* Writes the digits of `value` before `end` and returns where they begin. */
static char *digits_before(char *end, uint64_t value)
{
    do
        *--end = (char)('0' + value % 10);
    while (value /= 10);
    return end;
}

void line_digits(uint64_t value, unsigned digits)
{
    char text[MAX_DIGITS + 1];
    char *end = text + MAX_DIGITS;
    char *start = digits_before(end, value);

    *end = '\0';
    while (end - start < (long)digits && start > text)
        *--start = '0';
    line_text(start);
}

void line_number(uint64_t value)
{
    line_digits(value, 1);
}

void line_hex(uint64_t value)
{
    unsigned shift = 60;

    while (shift && !(value >> shift))
        shift -= 4;
    line_text("0x");
    for (;; shift -= 4) {
        line_char("0123456789abcdef"[value >> shift & 0xf]);
        if (!shift)
            return;
    }
}

void line_to_column(unsigned column)
{
    do
        line_char(' ');
    while (length < column && length < COLUMNS);
}

void line_text_before(unsigned column, const char *text)
{
    unsigned width = 0;

    while (text[width])
        width++;
    line_to_column(column > width ? column - width : 0);
    line_text(text);
}

void line_tenths_before(unsigned column, uint64_t tenths)
{
    char text[MAX_DIGITS + 3];
    char *at = text + sizeof text - 1;

    *at = '\0';
    /* One digit after the point for small numbers; more would be noise. */
    if (tenths < 1000) {
        *--at = (char)('0' + tenths % 10);
        *--at = '.';
    }
    line_text_before(column, digits_before(at, tenths / 10));
}

void line_end(void)
{
    buffer[length++] = '\r';
    buffer[length++] = '\n';
    rep_outsb(COM1_DATA, buffer, length);
    length = 0;
}
