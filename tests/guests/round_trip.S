/* As `rings`, but waits in memory for the answer to each ring. */
#include "guest.inc"
#include "rings.inc"

    pvh_start
    xor %ebx, %ebx
1:  rings_orders
2:  inc %ebx
    ring
3:  cmp %ebx, RINGS_ANSWER
    jne 3b
    dec %ecx
    jnz 2b
    out %al, $RINGS_DONE_PORT
    jmp 1b
