/*
 * Stores to as many pages as it is told by a port, at a distance that it is told after that; then asks again. Told of none, it asks
 * again at once.
 */
#include "guest.inc"

#define WINDOW 0x40000000
#define SWEEP_PORT 0x590

/* EBP: grows with each store. */
    pvh_start
    xor %ebp, %ebp
    mov $SWEEP_PORT, %edx

sweep:
    in %dx, %eax
    test %eax, %eax
    jz sweep
    mov %eax, %ecx
    in %dx, %eax
    mov $WINDOW, %edi
1:  inc %ebp
    mov %ebp, (%edi)
    add %eax, %edi
    dec %ecx
    jnz 1b
    jmp sweep
