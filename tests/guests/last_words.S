/* Asks for its end through the port that its command line names, with a byte, and talks on without a pause. */
#include "guest.inc"

    pvh_start
    stack
    mov START_INFO_CMDLINE(%ebx), %esi
    call hex_number
    mov %eax, %ebp
    call hex_number
    mov %eax, %edi
    putc 'b'
    mov %ebp, %edx
    mov %edi, %eax
    out %al, %dx
1:  putc 'a'
    jmp 1b

    cmdline_routines
