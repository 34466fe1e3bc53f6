// Software interrupts and exceptions through the real-mode vector table (SDM vol. 3A §21.1.4).
#include "guest.inc"
    .code16
    .globl _start
_start:
    movw    $on_divide, 0x00
    movw    $0, 0x02
    movw    $on_breakpoint, 0x0c
    movw    $0, 0x0e
    movw    $on_overflow, 0x10
    movw    $0, 0x12
    movw    $on_invalid, 0x18
    movw    $0, 0x1a
    movw    $on_protection, 0x34
    movw    $0, 0x36
    movw    $on_service, 0x84
    movw    $0, 0x86

    mov     $0x1234, %ax
    sti
    int     $0x21
    cli
    int3
    mov     $0x7f, %al
    add     $1, %al
    into
    xor     %bx, %bx
    mov     $100, %ax
divide:
    div     %bl
    ud2
    mov     0xffff, %ax             // a word across the segment's limit
    incw    RESULTS + 0x20
    finish

on_service:
    pushfw
    popw    RESULTS                 // IF and TF are clear in here
    mov     %ax, RESULTS + 2
    push    %bp
    mov     %sp, %bp
    mov     6(%bp), %ax
    mov     %ax, RESULTS + 4        // IF was set out there
    pop     %bp
    iretw
on_breakpoint:
    movw    $3, RESULTS + 8
    iretw
on_overflow:
    movw    $4, RESULTS + 10
    iretw
on_divide:                          // a fault: the pushed address is the DIV's, two bytes long
    movw    $0x100, RESULTS + 12
    jmp     skip2
on_invalid:
    movw    $6, RESULTS + 14
skip2:
    push    %bp
    mov     %sp, %bp
    addw    $2, 2(%bp)
    pop     %bp
    iretw
on_protection:
    movw    $13, RESULTS + 16
    push    %bp
    mov     %sp, %bp
    addw    $3, 2(%bp)
    pop     %bp
    iretw
