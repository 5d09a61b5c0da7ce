/*
 * Has KVM keep a kvmclock page, and looks again and again whether the time that it gives goes forward. Clears the flag by which
 * the host says that it has stopped the guest, and reports a round for each 16 times it finds it set. Checks that fail:
 *   1  the time went back  2  the page has gone  3  no page
 */
#include "guest64.inc"
#include "state.inc"

#define MSR_KVM_SYSTEM_TIME_NEW 0x4b564d01
#define GUEST_STOPPED 2
/* struct pvclock_vcpu_time_info */
#define VERSION 0
#define TSC_TIMESTAMP 8
#define SYSTEM_TIME 16
#define TSC_TO_SYSTEM_MUL 24
#define TSC_SHIFT 28
#define FLAGS 29

    linux64_start
    mov $MSR_KVM_SYSTEM_TIME_NEW, %ecx
    mov $(page + 1), %eax
    xor %edx, %edx
    wrmsr
    mov $3, %ebx
    cmpl $0, page + VERSION
    je failed
    xor %r15d, %r15d

/* R14: the time before. */
    xor %r14d, %r14d
look:
    mov page + VERSION, %r13d
    test $1, %r13d
    jnz look
    mov $2, %ebx
    test %r13d, %r13d
    jz failed
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    sub page + TSC_TIMESTAMP, %rax
    movsbl page + TSC_SHIFT, %ecx
    test %ecx, %ecx
    js 1f
    shl %cl, %rax
    jmp 2f
1:  neg %ecx
    shr %cl, %rax
2:  mov page + TSC_TO_SYSTEM_MUL, %edx
    mul %rdx
    shrd $32, %rdx, %rax
    add page + SYSTEM_TIME, %rax
    cmp page + VERSION, %r13d
    jne look
    mov $1, %ebx
    cmp %r14, %rax
    jb failed
    mov %rax, %r14
    testb $GUEST_STOPPED, page + FLAGS
    jz look
    movb $0, page + FLAGS
    inc %r15d
    test $15, %r15d
    jnz look
    round_done
    jmp look

failed:
    wrong %ebx

    .bss
    .balign 4096
page:
    .space 4096
