/*
 * Stores to pages of a window as a sequence of random numbers says, a sequence of its own for each vCPU, and says of each page,
 * before it stores, which one it will be. By then the store before is done.
 */
#include "guest.inc"

#define WINDOW 0x40000000
#define PAGES_MASK 511
#define WRITE_PORT 0x590

/* ESI: the number of this vCPU. EBP: the random number. */
    pvh_start
    mov $1, %eax
    cpuid
    shr $24, %ebx
    mov %ebx, %esi
    lea 1(%ebx), %ebp

next:
    imul $1103515245, %ebp, %ebp
    add $12345, %ebp
    mov %ebp, %edi
    shr $16, %edi
    and $PAGES_MASK, %edi

    mov %esi, %eax
    shl $16, %eax
    or %edi, %eax
    mov $WRITE_PORT, %edx
    out %eax, %dx

    shl $12, %edi
    mov %ebp, WINDOW(%edi,%esi,4)
    jmp next
