/*
 * Starts all other CPUs with one INIT and one SIPI to all but itself. Each of them counts itself and notes its APIC id
 * as CPUID leaf 0xb gives it; leaf 1 must have its lower 8 bits. The first CPU waits for them, says how many it expected
 * (leaf 0xb, subleaf 1), how many came, and how many ids are right (each from 1 on there once); then everybody halts.
 */
#include "guest.inc"
#include "x2apic.inc"

#define ICR_INIT_OTHERS 0xc4500
#define ICR_STARTUP_OTHERS 0xc4600
#define TRAMPOLINE 0x8000
#define COUNTER 0x9000
/* A byte for each APIC id: how often a CPU came with it. */
#define SEEN 0x9100
#define PATIENCE 20000000

    pvh_start
    stack
    mov $0xb, %eax
    mov $1, %ecx
    cpuid
    mov %ebx, %ebp
    say_hex "expected ", %ebp

    place_trampoline TRAMPOLINE
    enable_x2apic
    mov $MSR_X2APIC_ICR, %ecx
    xor %edx, %edx
    mov $ICR_INIT_OTHERS, %eax
    wrmsr
    mov $(ICR_STARTUP_OTHERS | TRAMPOLINE >> 12), %eax
    wrmsr

    mov $PATIENCE, %ecx
1:  mov COUNTER, %eax
    inc %eax
    cmp %eax, %ebp
    je 2f
    pause
    dec %ecx
    jnz 1b
2:  say_hex "came ", %eax

    xor %edi, %edi
    mov $1, %ecx
3:  cmp %ebp, %ecx
    jae 5f
    cmpb $1, SEEN(%ecx)
    jne 4f
    inc %edi
4:  inc %ecx
    jmp 3b
5:  say_hex "ids ", %edi
    halt

    serial_routines

    .code16
trampoline:
    xor %ax, %ax
    mov %ax, %ds
    mov $1, %eax
    cpuid
    shr $24, %ebx
    mov %ebx, %esi
    mov $0xb, %eax
    xor %ecx, %ecx
    cpuid
    movzbl %dl, %eax
    cmp %eax, %esi
    jne 1f
    lock incb SEEN(%edx)
1:  lock incl COUNTER
2:  cli
    hlt
    jmp 2b
trampoline_end:
