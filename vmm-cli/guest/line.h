/* The line: text is put together here and goes to the console as a whole. Only the boot processor prints. */
#pragma once

#include <stdint.h>

/* What does not fit in 80 columns is cut off. */
void line_text(const char *text);
void line_char(char c);
void line_number(uint64_t value);
/* `value` in at least `digits` decimal digits. */
void line_digits(uint64_t value, unsigned digits);
void line_hex(uint64_t value);

/* Spaces up to `column`, at least one. */
void line_to_column(unsigned column);
/* Spaces, then a text or a number of tenths, so that it ends before `column`. */
void line_text_before(unsigned column, const char *text);
void line_tenths_before(unsigned column, uint64_t tenths);

/* Sends the line. */
void line_end(void);
