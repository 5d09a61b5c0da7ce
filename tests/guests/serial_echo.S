/* Echoes what COM1 receives, polling; 0x04 (end of transmission) ends the machine with 0. */
#include "guest.inc"

#define LSR_DATA_READY 1
#define END_OF_TRANSMISSION 4

    pvh_start
    stack
    say "ready\n"
next:
    mov $COM1_LSR, %edx
1:  in %dx, %al
    test $LSR_DATA_READY, %al
    jz 1b
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
