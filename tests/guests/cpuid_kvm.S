/*
 * Says what CPUID tells of KVM (leaf 0x40000001: features and hints), whether there is MONITOR, and how many C-states
 * MWAIT knows (leaf 5), then ends.
 */
#include "guest.inc"

#define KVM_LEAF 0x40000001
#define MWAIT_LEAF 5
#define MONITOR_BIT 8

    pvh_start
    stack
    mov $KVM_LEAF, %eax
    xor %ecx, %ecx
    cpuid
    mov %edx, %ebp
    say_hex "features ", %eax
    say_hex "hints ", %ebp
    mov $1, %eax
    cpuid
    and $MONITOR_BIT, %ecx
    say_hex "monitor ", %ecx
    mov $MWAIT_LEAF, %eax
    xor %ecx, %ecx
    cpuid
    say_hex "mwait ", %ecx
    debug_exit $0
    halt

    serial_routines
