/* Rings the doorbell of the self-test device 10,000 times and says how many rings were served; resets. */
#include "guest.inc"
#include "selftest.inc"

#define RINGS 10000
#define PATIENCE 100000

    pvh_start
    stack
    say_hex "magic ", SELFTEST_MAGIC
    mov $RINGS, %ecx
1:  mov %ecx, SELFTEST_DOORBELL
    dec %ecx
    jnz 1b
    mov $PATIENCE, %ecx
2:  mov SELFTEST_RINGS, %eax
    cmp $RINGS, %eax
    jae 3f
    dec %ecx
    jnz 2b
    /* Rings too many would come late. */
3:  mov $100, %ecx
4:  mov SELFTEST_SCRATCH, %eax
    dec %ecx
    jnz 4b
    say_hex "rings ", SELFTEST_RINGS
    reset

    serial_routines
