/*
 * Writes as many bytes to COM1 as its command line says (hexadecimal), never waiting for the transmitter, then ends the
 * machine with 5.
 */
#include "guest.inc"

    pvh_start
    stack
    mov START_INFO_CMDLINE(%ebx), %esi
    call hex_number
    mov %eax, %ecx
    mov $COM1, %edx
    mov $'f', %al
1:  out %al, %dx
    dec %ecx
    jnz 1b
    debug_exit $5
    halt

    cmdline_routines
