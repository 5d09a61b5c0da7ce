/*
 * Holds a virtual machine with a local APIC and one without, each with a vCPU that never runs, until it is killed.
 * Writes an empty line when it has them.
 *
 * KVM patches the running kernel when the first machine, or the first vCPU of some kind, comes and when the last one
 * goes. The emulator (QEMU before 8.1) loses such a patch on another CPU now and then, and the kernel dies of a
 * breakpoint that nobody set. While these two machines exist, nothing is patched.
 */

#define SYS_write 1
#define SYS_open 2
#define SYS_ioctl 16
#define SYS_pause 34
#define SYS_exit 60
#define O_RDWR 2
#define KVM_CREATE_VM 0xae01
#define KVM_CREATE_VCPU 0xae41
#define KVM_CREATE_IRQCHIP 0xae60

.macro ioctl fd, request
    mov \fd, %edi
    mov $\request, %esi
    xor %edx, %edx
    mov $SYS_ioctl, %eax
    syscall
    test %eax, %eax
    js failed
.endm

.globl _start
_start:
    lea kvm(%rip), %rdi
    mov $O_RDWR, %esi
    mov $SYS_open, %eax
    syscall
    test %eax, %eax
    js failed
    mov %eax, %ebx
    ioctl %ebx, KVM_CREATE_VM
    mov %eax, %ebp
    ioctl %ebp, KVM_CREATE_VCPU
    ioctl %ebx, KVM_CREATE_VM
    mov %eax, %ebp
    ioctl %ebp, KVM_CREATE_IRQCHIP
    ioctl %ebp, KVM_CREATE_VCPU
    mov $1, %edi
    lea line(%rip), %rsi
    mov $1, %edx
    mov $SYS_write, %eax
    syscall
1:  mov $SYS_pause, %eax
    syscall
    jmp 1b

failed:
    mov $1, %edi
    mov $SYS_exit, %eax
    syscall

kvm:
    .asciz "/dev/kvm"
line:
    .ascii "\n"
