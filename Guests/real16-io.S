// Port accesses of every width and form in real mode (SDM vol. 1 §19).
#include "guest.inc"
    .code16
    .globl _start
_start:
    mov     $0x11223344, %eax
    out     %al, $0x40
    out     %ax, $0x42
    out     %eax, $0x44
    mov     $0x3f8, %dx
    out     %al, %dx
    out     %ax, %dx
    out     %eax, %dx

    in      $0x50, %al
    mov     %eax, RESULTS
    in      $0x52, %ax
    mov     %eax, RESULTS + 4
    in      $0x54, %eax
    mov     %eax, RESULTS + 8
    mov     $0x2f8, %dx
    in      %dx, %al
    mov     %eax, RESULTS + 12
    in      %dx, %eax
    mov     %eax, RESULTS + 16

    cld
    mov     $message, %si
    mov     $5, %cx
    mov     $0xe9, %dx
    rep outsb
    mov     $message, %si
    mov     $2, %cx
    rep outsw
    mov     $message + 4, %si
    std
    mov     $2, %cx
    rep outsl
    cld

    mov     $RESULTS + 32, %di
    mov     $0x60, %dx
    mov     $3, %cx
    rep insb
    mov     $RESULTS + 36, %di
    mov     $2, %cx
    rep insw
    mov     $RESULTS + 40, %di
    mov     $2, %cx
    rep insl
    insb
    outsb
    xor     %cx, %cx
    rep outsb                       // nothing happens
    finish

message:
    .ascii  "hello, port"
