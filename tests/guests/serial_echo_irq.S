/* Echoes what COM1 receives, by interrupts through the 8259; 0x04 (end of transmission) ends the machine with 0. */
#include "guest.inc"
#include "irq.inc"

#define COM1_IER (COM1 + 1)
#define COM1_IIR (COM1 + 2)
#define COM1_MCR (COM1 + 4)
#define IER_RECEIVED 1
#define MCR_OUT2 8
#define LSR_DATA_READY 1
#define END_OF_TRANSMISSION 4
#define SERIAL_IRQ 4
#define BASE_VECTOR 0x20

    pvh_start
    stack
    interrupt_tables
    set_gate (BASE_VECTOR + SERIAL_IRQ), received
    route_pic_input SERIAL_IRQ, BASE_VECTOR
    mov $COM1_MCR, %edx
    mov $MCR_OUT2, %al
    out %al, %dx
    mov $COM1_IER, %edx
    mov $IER_RECEIVED, %al
    out %al, %dx
    say "ready\n"
wait:
    stack
    sti
1:  hlt
    jmp 1b

received:
    /* Before the data: a byte that arrives from here on interrupts again. */
    mov $PIC_EOI, %al
    out %al, $PIC1
    mov $COM1_IIR, %edx
    in %dx, %al
next:
    mov $COM1_LSR, %edx
    in %dx, %al
    test $LSR_DATA_READY, %al
    jz wait
    mov $COM1, %edx
    in %dx, %al
    cmp $END_OF_TRANSMISSION, %al
    je end
    out %al, %dx
    jmp next
end:
    debug_exit $0
    halt

    serial_routines
