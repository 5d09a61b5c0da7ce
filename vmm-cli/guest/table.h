/* The table: one row for each mechanism, and the verdict over all rows. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "measure.h"

enum result {
    PASSED,
    FAILED,
    NOT_PRESENT,
    NOT_A_CHECK, /* only figures */
};

void table_start(void);
/* Prints a row up to its note; the caller goes on with the line. `figures` may be null. */
void table_begin(const char *mechanism, enum result result, const struct figures *figures);
/* Prints a whole row. */
void table_row(const char *mechanism, enum result result, const struct figures *figures, const char *note);
/* Prints the verdict, and how long the guest has run; true if no check has failed. */
bool table_end(uint64_t ticks);
