/* As `rings`, but halts after each ring until its answer comes as an interrupt. */
#include "guest.inc"
#include "irq.inc"
#include "rings.inc"

#define PIN 5
#define VECTOR 0x50

    pvh_start
    stack
    interrupt_tables
    set_gate VECTOR, answered
    route_ioapic_pin PIN, VECTOR
1:  rings_orders
2:  ring
    sti
3:  hlt
    jmp 3b

answered:
    movl $0, LAPIC_EOI
    stack
    dec %ecx
    jnz 2b
    out %al, $RINGS_DONE_PORT
    jmp 1b
