/*
 * Stores to guest RAM that comes, goes, moves, is replaced and becomes read-only meanwhile, and loads it again. Each vCPU has
 * a cell of its own at each place, and stores there a number that grows by one each round. The number of a check that
 * fails says which place it was:
 *   1  RAM that stays, though its memory is replaced: what was stored is loaded
 *   2  RAM that is read-only now and then: no older value than the one before
 *   3  RAM that comes and goes: ones, or no value that was never stored
 *   4  RAM that moves from here to there: ones, or no older value than the one before
 *   5  a hole: ones
 */
#include "guest.inc"
#include "state.inc"

#define WINDOW 0x40000000
#define STAYS WINDOW
#define GUARDED (WINDOW + 0x100000)
#define COMES (WINDOW + 0x200000)
#define HERE (WINDOW + 0x300000)
#define THERE (WINDOW + 0x400000)
#define HOLE (WINDOW + 0x500000)
#define ONES 0xffffffff

/* In what each vCPU remembers. */
#define SEEN_GUARDED 0
#define SEEN_MOVED 4

/* Fails if EAX was never stored, or if it is older than what was seen before, which it then is. */
.macro not_older seen, check
    mov $\check, %ebx
    cmp %ebp, %eax
    ja failed
    cmp \seen(%edi), %eax
    jb failed
    mov %eax, \seen(%edi)
.endm

/* ESI: the cell at each place, a page for each vCPU. EDI: what this vCPU remembers. EBP: the number. */
    pvh_start
    mov $1, %eax
    cpuid
    shr $24, %ebx
    mov %ebx, %esi
    shl $12, %esi
    lea seen(,%ebx,8), %edi
    xor %ebp, %ebp

round:
    inc %ebp
    mov $1, %ebx
    mov %ebp, STAYS(%esi)
    mov STAYS(%esi), %eax
    cmp %ebp, %eax
    jne failed

    mov %ebp, GUARDED(%esi)
    mov GUARDED(%esi), %eax
    not_older SEEN_GUARDED, 2

    mov %ebp, COMES(%esi)
    mov COMES(%esi), %eax
    mov $3, %ebx
    cmp $ONES, %eax
    je 1f
    cmp %ebp, %eax
    ja failed
1:
    mov %ebp, HERE(%esi)
    mov %ebp, THERE(%esi)
    mov HERE(%esi), %eax
    cmp $ONES, %eax
    je 2f
    not_older SEEN_MOVED, 4
2:  mov THERE(%esi), %eax
    cmp $ONES, %eax
    je 3f
    not_older SEEN_MOVED, 4
3:
    mov $5, %ebx
    mov %ebp, HOLE(%esi)
    mov HOLE(%esi), %eax
    cmp $ONES, %eax
    jne failed

    test $15, %ebp
    jnz round
    mov %esi, %eax
    round_done
    jmp round

failed:
    wrong %ebx

    .bss
    .balign 8
seen:
    .space 8 * 256
