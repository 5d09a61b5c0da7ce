/* Rings with four bytes where and as often as the host says, tells it, and asks again. */
#include "guest.inc"
#include "rings.inc"

    pvh_start
1:  rings_orders
    cmp $0x10000, %edx
    jae 3f
2:  .rept RINGS_BURST
    out %eax, %dx
    .endr
    sub $RINGS_BURST, %ecx
    jnz 2b
    jmp 4f
3:  .rept RINGS_BURST
    mov %eax, (%edx)
    .endr
    sub $RINGS_BURST, %ecx
    jnz 3b
4:  out %al, $RINGS_DONE_PORT
    jmp 1b
