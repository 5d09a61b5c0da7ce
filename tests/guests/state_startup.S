/*
 * Starts the second CPU by INIT and SIPI, waits until that has counted itself, and starts it again. A CPU that is not
 * started, or that does not count, leaves it waiting for ever; one that counts twice is a check that fails (1).
 */
#include "guest64.inc"
#include "state.inc"
#include "x2apic.inc"

/* Conventional memory that nothing of the boot protocol is in. */
#define TRAMPOLINE 0x80000
#define COUNTER 0x80800
#define SPIN 300

    linux64_start
    place_trampoline TRAMPOLINE
    enable_x2apic
    xor %r12d, %r12d

round:
    mov $MSR_X2APIC_ICR, %ecx
    mov $1, %edx
    mov $ICR_INIT, %eax
    wrmsr
    call spin
    mov $MSR_X2APIC_ICR, %ecx
    mov $1, %edx
    mov $(ICR_STARTUP | TRAMPOLINE >> 12), %eax
    wrmsr
    inc %r12d
1:  mov COUNTER, %eax
    cmp %r12d, %eax
    jb 1b
    /* Now it halts. */
    call spin
    mov COUNTER, %eax
    cmp %r12d, %eax
    jne failed
    round_done
    jmp round

spin:
    mov $SPIN, %ecx
1:  dec %ecx
    jnz 1b
    ret

failed:
    mov $1, %ebx
    wrong %ebx

    .code16
trampoline:
    cli
    mov %cs, %ax
    mov %ax, %ds
    incl COUNTER - TRAMPOLINE
1:  hlt
    jmp 1b
trampoline_end:
