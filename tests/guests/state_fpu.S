/*
 * Loads x87 and SSE registers from an image and looks again and again whether they still are what was loaded. In 32-bit
 * mode, where KVM's emulator knows FXRSTOR and FXSAVE. A check that fails is numbered by its place in the image.
 */
#include "guest.inc"
#include "state.inc"

#define CR0_MP (1 << 1)
#define CR0_EM (1 << 2)
#define CR0_TS (1 << 3)
#define CR4_OSFXSR (1 << 9)
/* x87 and SSE state with eight vector registers; what follows is not the processor's. */
#define IMAGE 288

    pvh_start
    stack
    mov %cr0, %eax
    and $~(CR0_EM | CR0_TS), %eax
    or $CR0_MP, %eax
    mov %eax, %cr0
    mov %cr4, %eax
    or $CR4_OSFXSR, %eax
    mov %eax, %cr4
    /* Registers of 10 bytes, each in 16; the vectors follow. */
    mov $(image + 32), %edi
    mov $8, %ecx
1:  mov $10, %edx
2:  add $0x1b, %al
    mov %al, (%edi)
    inc %edi
    dec %edx
    jnz 2b
    add $6, %edi
    dec %ecx
    jnz 1b
    mov $128, %ecx
3:  add $0x35, %al
    mov %al, (%edi)
    inc %edi
    dec %ecx
    jnz 3b
    fxrstor image
    /* What the processor makes of the image, for example of the mask of MXCSR. */
    fxsave loaded

round:
    fxsave now
    xor %ecx, %ecx
1:  mov now(%ecx), %al
    cmp loaded(%ecx), %al
    jne failed
    cmp $32, %ecx
    jb 2f
    cmp image(%ecx), %al
    jne failed
2:  inc %ecx
    cmp $IMAGE, %ecx
    jb 1b
    next_round

failed:
    wrong %ecx

    .data
    .balign 16
/* Control word, status, all registers used, last opcode, instruction, operand, MXCSR, its mask. */
image:
    .word 0x027f, 0x3800, 0xff, 0x0123
    .long 0x00112233, 0x0010, 0x00445566, 0x0018
    .org image + 24
    .long 0x1f80, 0xffff
    .org image + 512

    .bss
    .balign 16
loaded:
    .space 512
now:
    .space 512
rounds:
    .space 4
