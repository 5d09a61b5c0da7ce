/*
 * An instruction that KVM's emulator lacks, on a page that KVM must emulate: a 16-byte SSE store to MMIO, on the last
 * CPU. KVM gives up with an internal error on any host.
 */
#include "guest.inc"
#include "smp.inc"

#define CR0_EM (1 << 2)
#define CR0_MP (1 << 1)
#define CR4_OSFXSR (1 << 9)

    pvh_start
    stack
    start_last_cpu crash
    halt

    .code32
crash:
    mov %cr0, %eax
    and $~CR0_EM, %eax
    or $CR0_MP, %eax
    mov %eax, %cr0
    mov %cr4, %eax
    or $CR4_OSFXSR, %eax
    mov %eax, %cr4
    mov $BENCH_MMIO, %eax
    psadbw (%eax), %xmm0
    halt
