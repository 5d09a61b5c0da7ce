/*
 * Asks the hypervisor for a service that does not exist, for ever. On KVM-PVM, where kernel-mode code is interpreted, the
 * first VMCALL does not end: KVM goes round and round in it.
 */
#include "guest.inc"

    pvh_start
1:  mov $0xffff, %eax
    vmcall
    jmp 1b
