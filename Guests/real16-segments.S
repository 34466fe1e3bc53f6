// Segment arithmetic, far transfers and overrides in real mode (SDM vol. 3A §21.1.1).
#include "guest.inc"
    .code16
    .globl _start
_start:
    mov     $0x600, %ax
    mov     %ax, %es
    movw    $0xbeef, %es:0x10       // linear 0x6010
    mov     $0x5ff, %ax
    mov     %ax, %fs
    mov     %fs:0x20, %bx           // the same place
    mov     %bx, RESULTS
    lcall   $0x700, $far_procedure - 0x7000
    mov     %ax, RESULTS + 2
    les     pointer, %di
    mov     %es:(%di), %eax
    mov     %eax, RESULTS + 4
    lds     pointer, %si
    mov     %ds, %cs:RESULTS + 8
    mov     %si, %cs:RESULTS + 10
    push    %cs
    pop     %ds
    push    %es
    pop     %gs
    mov     %gs, RESULTS + 12
    mov     $0xffff, %ax            // above 1 MiB without a wrapped A20
    mov     %ax, %es
    movl    $0x600df00d, %es:0x1010
    mov     $0x21, %dx
    mov     %ss, %ax
    mov     %sp, %ax
    mov     %ax, RESULTS + 14
    ljmp    $0x800, $(continued - 0x8000)

far_procedure:
    mov     %cs, %ax
    lretw

continued:
    mov     %cs, %ax
    mov     %ax, RESULTS + 16
    smsw    %ax
    mov     %ax, RESULTS + 18
    finish

pointer:
    .word   pointed_to - 0x7000, 0x700
pointed_to:
    .long   0xcafef00d
