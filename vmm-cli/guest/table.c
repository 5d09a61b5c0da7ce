/* Columns that fit a terminal of 80. */
#include "table.h"

#include "clock.h"
#include "line.h"

#define RESULT_COLUMN 22
#define BEST_END 42
#define MEDIAN_END 54
#define NOTE_COLUMN 56

#define MAX_FAILED 16

static const char *failed[MAX_FAILED];
static unsigned failures;
static unsigned passes;
static unsigned absences;

void table_start(void)
{
    line_text("  mechanism");
    line_to_column(RESULT_COLUMN);
    line_text("result");
    line_text_before(BEST_END, clock_known() ? "best ns" : "best tsc");
    line_text_before(MEDIAN_END, clock_known() ? "median ns" : "median tsc");
    line_to_column(NOTE_COLUMN);
    line_text("note");
    line_end();
}

static const char *word(enum result result)
{
    switch (result) {
    case PASSED:
        return "ok";
    case FAILED:
        return "FAILED";
    case NOT_PRESENT:
        return "not present";
    case NOT_A_CHECK:
        break;
    }
    return "-";
}

void table_begin(const char *mechanism, enum result result, const struct figures *figures)
{
    if (result == PASSED)
        passes++;
    if (result == NOT_PRESENT)
        absences++;
    if (result == FAILED && failures < MAX_FAILED)
        failed[failures++] = mechanism;

    line_text("  ");
    line_text(mechanism);
    line_to_column(RESULT_COLUMN);
    line_text(word(result));
    if (figures) {
        line_tenths_before(BEST_END, figures->best);
        line_tenths_before(MEDIAN_END, figures->median);
    }
    line_to_column(NOTE_COLUMN);
}

void table_row(const char *mechanism, enum result result, const struct figures *figures, const char *note)
{
    table_begin(mechanism, result, figures);
    line_text(note);
    line_end();
}

bool table_end(uint64_t ticks)
{
    line_end();
    if (failures == 0) {
        line_text("all ");
        line_number(passes);
        line_text(" checks passed");
    } else {
        line_number(failures);
        line_text(" of ");
        line_number(passes + failures);
        line_text(" checks FAILED:");
        for (unsigned i = 0; i < failures; i++) {
            line_text(i ? ", " : " ");
            line_text(failed[i]);
        }
    }
    if (absences) {
        line_text("; not present: ");
        line_number(absences);
    }
    if (clock_known()) {
        line_text("; ");
        line_number(clock_ns(ticks) / 1000000);
        line_text(" ms");
    }
    line_end();
    return failures == 0;
}
