/*
 * Writes what its command line says, three hexadecimal numbers: a port, a value and the width in bytes. Halts if that
 * is not its end.
 */
#include "guest.inc"

    pvh_start
    stack
    mov START_INFO_CMDLINE(%ebx), %esi
    call hex_number
    mov %eax, %ebp
    call hex_number
    mov %eax, %edi
    call hex_number
    mov %eax, %ecx
    mov %ebp, %edx
    mov %edi, %eax
    cmp $1, %ecx
    je 1f
    cmp $2, %ecx
    je 2f
    out %eax, %dx
    halt
1:  out %al, %dx
    halt
2:  out %ax, %dx
    halt

    cmdline_routines
