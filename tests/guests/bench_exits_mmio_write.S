/* Writes four bytes where there is no memory, for ever. */
#include "guest.inc"

    pvh_start
    mov $BENCH_MMIO, %edi
1:  mov %eax, (%edi)
    jmp 1b
