/*
 * Has blocks of memory plugged and unplugged, in an order by chance, and checks all of its blocks after each change. Each
 * vCPU has every other block, so that what it uses is beside what the other one changes. A block that is plugged has
 * the number of the round in which it was plugged in its first and its last word. The number of a check that fails:
 *   1  memory that has just been plugged reads as zero
 *   2  memory that is not plugged reads as ones, whatever is stored there
 *   3  memory that is plugged has what was stored
 */
#include "guest.inc"
#include "state.inc"

#define WINDOW 0x40000000
#define BLOCK_SHIFT 16
#define LAST_WORD 0xfffc
#define OWN_BLOCKS 8
#define ONES 0xffffffff

#define REQUEST_PORT 0x5a4
#define ANSWER_PORTS 0x5a8
#define PLUG 0x100
#define UNPLUG 0x200
#define WAIT 0
#define DONE 1

/* In what each vCPU remembers, behind the numbers in its blocks. */
#define CHANCE 32

/* ECX becomes the address of own block EBX. */
.macro block_address
    lea (%esi,%ebx,2), %ecx
    shl $BLOCK_SHIFT, %ecx
    add $WINDOW, %ecx
.endm

/* Fails with `check` unless the first and the last word of the block at ECX are `value`. */
.macro expect value, check
    mov (%ecx), %eax
    cmp \value, %eax
    mov $\check, %eax
    jne failed
    mov LAST_WORD(%ecx), %eax
    cmp \value, %eax
    mov $\check, %eax
    jne failed
.endm

/* ESI: the number of the vCPU. EDI: what it remembers. EBP: the number of the round. */
    pvh_start
    mov $1, %eax
    cpuid
    shr $24, %ebx
    mov %ebx, %esi
    mov %ebx, %edi
    shl $6, %edi
    add $memory, %edi
    inc %ebx
    mov %ebx, CHANCE(%edi)
    xor %ebp, %ebp

round:
    inc %ebp
    mov CHANCE(%edi), %eax
    mov %eax, %edx
    shl $13, %edx
    xor %edx, %eax
    mov %eax, %edx
    shr $17, %edx
    xor %edx, %eax
    mov %eax, %edx
    shl $5, %edx
    xor %edx, %eax
    mov %eax, CHANCE(%edi)
    shr $8, %eax
    and $(OWN_BLOCKS - 1), %eax
    mov %eax, %ebx

    mov %esi, %eax
    shl $16, %eax
    lea (%eax,%esi), %eax
    lea (%eax,%ebx,2), %eax
    cmpl $0, (%edi,%ebx,4)
    jne 1f
    or $PLUG, %eax
    jmp 2f
1:  or $UNPLUG, %eax
2:  mov $REQUEST_PORT, %edx
    out %eax, %dx
    lea ANSWER_PORTS(,%esi,4), %edx
3:  in %dx, %eax
    cmp $WAIT, %eax
    je 3b
    cmp $DONE, %eax
    jne check

    cmpl $0, (%edi,%ebx,4)
    jne 4f
    block_address
    expect $0, 1
    mov %ebp, (%ecx)
    mov %ebp, LAST_WORD(%ecx)
    mov %ebp, (%edi,%ebx,4)
    jmp check
4:  movl $0, (%edi,%ebx,4)

check:
    xor %ebx, %ebx
5:  block_address
    mov (%edi,%ebx,4), %edx
    test %edx, %edx
    jnz 6f
    mov %ebp, (%ecx)
    mov %ebp, LAST_WORD(%ecx)
    expect $ONES, 2
    jmp 7f
6:  expect %edx, 3
7:  inc %ebx
    cmp $OWN_BLOCKS, %ebx
    jb 5b

    test $15, %ebp
    jnz round
    mov %esi, %eax
    shl $12, %eax
    round_done
    jmp round

failed:
    wrong %eax

    .bss
    .balign 64
memory:
    .space 64 * 256
