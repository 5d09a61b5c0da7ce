/*
 * Reads and writes a port without a device, as often as its command line says (hexadecimal), then ends the machine
 * with 5.
 */
#include "guest.inc"

    pvh_start
    stack
    mov START_INFO_CMDLINE(%ebx), %esi
    call hex_number
    mov %eax, %ecx
    mov $BENCH_PORT, %edx
1:  in %dx, %al
    out %al, %dx
    dec %ecx
    jnz 1b
    debug_exit $5
    halt

    cmdline_routines
