/* Jumps to an address where there is no RAM, on the last CPU. Without an IDT nothing can catch what follows. */
#include "guest.inc"
#include "smp.inc"

    pvh_start
    stack
    start_last_cpu crash
    halt

    .code32
crash:
    mov $0xc0000000, %eax
    jmp *%eax
