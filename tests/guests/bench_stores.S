/* Stores to one word of RAM as fast as it can, for ever, a number that grows by one each time. */
#include "guest.inc"

/* As the benchmark of slots has it. */
#define CELL 0x9000

    pvh_start
    xor %eax, %eax
1:  inc %eax
    mov %eax, CELL
    jmp 1b
