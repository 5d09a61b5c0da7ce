/*
 * Raises the interrupt of the self-test device 100 times, through the IOAPIC, each after the one before has arrived,
 * and says how many arrived; resets. If one does not arrive it halts for ever.
 */
#include "guest.inc"
#include "irq.inc"
#include "selftest.inc"

#define PIN 5
#define VECTOR 0x50
#define INTERRUPTS 100

    pvh_start
    stack
    interrupt_tables
    set_gate VECTOR, arrived
    route_ioapic_pin PIN, VECTOR
    say_hex "line ", SELFTEST_LINE
    xor %edi, %edi
raise:
    movl $1, SELFTEST_RAISE
    sti
1:  hlt
    jmp 1b

arrived:
    movl $0, LAPIC_EOI
    stack
    inc %edi
    cmp $INTERRUPTS, %edi
    jb raise
    say_hex "interrupts ", %edi
    reset

    serial_routines
