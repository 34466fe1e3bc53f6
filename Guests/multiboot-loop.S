// Spends its time in one place, for a profile of it. Status (7 << 1) | 1 = 15.
#include "multiboot.inc"
_start:
    mov     $0x80000, %esp
    mov     $300000000, %ecx
    call    hot_loop
    exit_with 7

    .balign 4096
    .type   hot_loop, @function
hot_loop:
    dec     %ecx
    jnz     hot_loop
    ret
    .size   hot_loop, . - hot_loop
