/* Rings with four bytes where the host says, and counts; ends when told to. */
#include "guest.inc"
#include "rings.inc"

    pvh_start
    mov $RINGS_VALUE, %eax
1:  mov RINGS_WHERE, %edx
    cmp $0x10000, %edx
    jae 2f
    out %eax, %dx
    jmp 3f
2:  mov %eax, (%edx)
3:  incl RINGS_RUNG
    mov %edx, RINGS_USED
    cmpl $0, RINGS_STOP
    je 1b
    debug_exit $0
    halt
