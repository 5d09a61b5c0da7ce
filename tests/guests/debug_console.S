/* Prints on the debug console if that says that it is there, and resets. */
#include "guest.inc"

#define DEBUG_CONSOLE 0xe9

    pvh_start
    in $DEBUG_CONSOLE, %al
    cmp $DEBUG_CONSOLE, %al
    jne 2f
    mov $text, %esi
1:  mov (%esi), %al
    test %al, %al
    jz 2f
    out %al, $DEBUG_CONSOLE
    inc %esi
    jmp 1b
2:  reset

    .section .rodata
text:
    .asciz "debug console\n"
