/*
 * Asks the hypervisor for what it answers at once (KVM_HC_VAPIC_POLL_IRQ), as often as the host says, tells it, and asks
 * again. On KVM-PVM the first VMCALL does not end, see `vmcall_loop.S`.
 */
#include "guest.inc"
#include "rings.inc"

    pvh_start
1:  rings_orders
2:  .rept RINGS_BURST
    mov $1, %eax
    vmcall
    .endr
    sub $RINGS_BURST, %ecx
    jnz 2b
    out %al, $RINGS_DONE_PORT
    jmp 1b
