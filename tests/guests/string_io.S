/*
 * String instructions against the string port of the self-test device, which gives 0, 1, 2, … one byte an element and
 * adds up what it gets. Says the number of elements that are not as expected for bytes, words and double words, and the
 * sum of the bytes written; then resets. The buffer crosses pages.
 * A double word at the string port ends one byte past the device: there it reads as ones.
 */
#include "guest.inc"

#define STRING_PORT 0xd01
#define SUM_PORT 0xd02
#define ELEMENTS 600

    pvh_start
    stack
    cld
    .irp size, 1, 2, 4
    call restart
    mov $STRING_PORT, %edx
    mov $buffer, %edi
    mov $ELEMENTS, %ecx
    .if \size == 1
    rep insb
    .elseif \size == 2
    rep insw
    .else
    rep insl
    .endif
    /* Element n is n modulo 256 in its lowest byte. */
    xor %ebx, %ebx
    xor %ecx, %ecx
    mov $buffer, %edi
1:  movzx %cl, %edx
    .if \size == 1
    cmp %dl, (%edi)
    .elseif \size == 2
    cmp %dx, (%edi)
    .else
    or $0xff000000, %edx
    cmp %edx, (%edi)
    .endif
    je 2f
    inc %ebx
2:  add $\size, %edi
    inc %ecx
    cmp $ELEMENTS, %ecx
    jb 1b
    say_hex "wrong of size \size: ", %ebx
    .endr

    call restart
    mov $buffer, %edi
    xor %ecx, %ecx
3:  mov %cl, (%edi)
    inc %edi
    inc %ecx
    cmp $ELEMENTS, %ecx
    jb 3b
    mov $STRING_PORT, %edx
    mov $buffer, %esi
    mov $ELEMENTS, %ecx
    rep outsb
    mov $SUM_PORT, %edx
    xor %eax, %eax
    in %dx, %al
    say_hex "sum ", %eax
    reset

/* Clears the sum and starts the string again. Clobbers EDX. */
restart:
    mov $SUM_PORT, %edx
    out %al, %dx
    ret

    serial_routines

    .bss
    .balign 0x1000
    .space 0xf80
buffer:
    .space ELEMENTS * 4
