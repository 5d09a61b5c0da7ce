/* Does nothing, for ever, without an exit. */
#include "guest.inc"

    pvh_start
1:  jmp 1b
