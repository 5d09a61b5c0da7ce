/*
 * An exception without an IDT: a triple fault. The CPU that faults is the last one: the others halt, so that the
 * monitor has to stop vCPUs that never exit. The number of CPUs comes with `smp.inc`.
 */
#include "guest.inc"
#include "smp.inc"

    pvh_start
    stack
    start_last_cpu crash
    halt

    .code32
crash:
    lidt no_idt
    ud2
    halt

    .data
no_idt:
    .word 0
    .long 0
