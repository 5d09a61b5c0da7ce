/*
 * Counts the interrupts of each vector and sleeps in between, for a host that looks at the counters in its memory: vectors
 * FIRST to FIRST + 7, counted at COUNTERS. Pin 5 of the IOAPIC, edge-triggered, is FIRST, pin 10, level-triggered,
 * FIRST + 1; the others are for messages. The handler of the level-triggered one writes to a port, at which the host takes
 * back what it asserts, before it acknowledges. ENDED counts what has been acknowledged. Says once, by a write to another
 * port, that it is ready.
 */
#include "guest.inc"
#include "irq.inc"

#define FIRST 0x50
#define COUNTERS 0x9000
#define ENDED (COUNTERS + 4 * 8)
#define READY_PORT 0xe0
#define SERVED_PORT 0xe1
#define EDGE_PIN 5
#define LEVEL_PIN 10
#define LEVEL_TRIGGERED 0x8000

.macro counting vector
    set_gate (FIRST + \vector), arrived\vector
    .pushsection .text.handlers, "ax"
arrived\vector:
    incl COUNTERS + 4 * \vector
    .if \vector == 1
    out %al, $SERVED_PORT
    .endif
    jmp acknowledge
    .popsection
.endm

    pvh_start
    stack
    interrupt_tables
    counting 0
    counting 1
    counting 2
    counting 3
    counting 4
    counting 5
    counting 6
    counting 7
    route_ioapic_pin EDGE_PIN, FIRST
    route_ioapic_pin LEVEL_PIN, (FIRST + 1 + LEVEL_TRIGGERED)
    out %al, $READY_PORT
idle:
    sti
1:  hlt
    jmp 1b

acknowledge:
    movl $0, LAPIC_EOI
    incl ENDED
    stack
    jmp idle
