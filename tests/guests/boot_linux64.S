/* Tells on COM1 what a guest of the 64-bit Linux boot protocol is given; then resets. */
#include "guest64.inc"

    linux64_start
    mov %rsi, %rbp
    xor %eax, %eax
    mov %cs, %ax
    say_rax "cs "
    mov %ds, %ax
    say_rax "ds "
    mov PARAMS_HEADER(%rbp), %eax
    say_rax "header "
    say64 "cmdline "
    mov PARAMS_CMDLINE(%rbp), %esi
    call serial_puts
    say64 "\n"

    mov PARAMS_RAMDISK_SIZE(%rbp), %ecx
    test %ecx, %ecx
    jz map
    mov PARAMS_RAMDISK(%rbp), %edi
    say64 "initrd "
1:  mov (%rdi), %al
    call serial_putc
    inc %rdi
    dec %ecx
    jnz 1b
    say64 "\n"

map:
    movzbl PARAMS_MAP_ENTRIES(%rbp), %ecx
    lea PARAMS_MAP(%rbp), %rdi
1:  mov (%rdi), %rax
    say_rax "start "
    mov 8(%rdi), %rax
    say_rax "  size "
    mov 16(%rdi), %eax
    say_rax "  type "
    add $PARAMS_MAP_ENTRY_SIZE, %rdi
    dec %ecx
    jnz 1b
    reset

    serial_routines64
