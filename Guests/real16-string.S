// String instructions in both directions, with and without repetition (SDM vol. 1 §7.3.9).
#include "guest.inc"
    .code16
    .globl _start
_start:
    cld
    mov     $text, %si
    mov     $RESULTS, %di
    mov     $8, %cx
    rep movsb
    mov     $0xa5, %al
    mov     $3, %cx
    rep stosb
    mov     $0x1234, %ax
    mov     $2, %cx
    rep stosw
    mov     $text, %si
    lodsl
    mov     %eax, RESULTS + 16

    mov     $text, %si              // first difference
    mov     $other, %di
    mov     $16, %cx
    repe cmpsb
    mov     %cx, RESULTS + 20
    mov     %si, RESULTS + 22
    pushfw
    popw    %ax
    and     $0x8d5, %ax
    mov     %ax, RESULTS + 24

    mov     $text, %di              // search
    mov     $'t', %al
    mov     $16, %cx
    repne scasb
    mov     %cx, RESULTS + 26
    mov     %di, RESULTS + 28

    std
    mov     $text + 7, %si
    mov     $RESULTS + 0x47, %di
    mov     $8, %cx
    rep movsb
    mov     $text + 8, %si          // overlapping, upwards: a pattern fill
    cld
    mov     $0x5a, %al
    mov     %al, RESULTS + 0x50
    mov     $RESULTS + 0x50, %si
    mov     $RESULTS + 0x51, %di
    mov     $9, %cx
    rep movsb
    mov     $0x20000, %esi          // 32-bit addressing with 16-bit data
    mov     $RESULTS + 0x60, %edi
    mov     $2, %ecx
    mov     $text, %esi
    .byte   0x67                    // address size
    rep movsw
    finish

text:
    .ascii  "martlet lands not"
other:
    .ascii  "martlet never lands"
