/* Says what the clock's registers read as, in the order century, year, month, day, hour, minute, second; resets. */
#include "guest.inc"

#define CMOS_INDEX 0x70
#define CMOS_DATA 0x71

    pvh_start
    stack
    .irp register, 0x32, 9, 8, 7, 4, 2, 0
    mov $\register, %al
    out %al, $CMOS_INDEX
    xor %eax, %eax
    in $CMOS_DATA, %al
    call serial_hex
    say " "
    .endr
    reset

    serial_routines
