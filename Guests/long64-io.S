// Ports and memory-mapped registers from 64-bit code: all widths, also unaligned.
#include "guest.inc"
    .code64
    .globl _start
_start:
    mov     $RESULTS, %rdi
    mov     $0x3f8, %edx
    mov     $0x1122334455667788, %rax
    out     %al, %dx
    out     %eax, %dx
    mov     $-1, %rax
    in      %dx, %al
    record64 %rax
    mov     $-1, %rax
    in      %dx, %eax               // clears the upper half
    record64 %rax

    mov     $MMIO, %rbx
    mov     $0x1122334455667788, %rax
    mov     %al, (%rbx)
    mov     %ax, 2(%rbx)
    mov     %eax, 4(%rbx)
    mov     %rax, 8(%rbx)
    mov     %rax, 0x13(%rbx)        // unaligned eight bytes
    movq    $-2, 0x20(%rbx)
    mov     0x28(%rbx), %rax
    record64 %rax
    mov     0x30(%rbx), %eax
    record64 %rax
    movsbq  0x38(%rbx), %rax
    record64 %rax
    movslq  0x3c(%rbx), %rax
    record64 %rax
    mov     0x43(%rbx), %rax        // unaligned eight bytes
    record64 %rax
    mov     0xffe(%rbx), %eax       // across a page
    record64 %rax
    mov     $0x55667788, %eax
    mov     %eax, 0x1ffd(%rbx)      // across a page
    mov     $0x1ffffe, %eax         // from RAM's last bytes into nothing
    mov     $0x01020304, %ecx
    lock orl $0x40, 0x50(%rbx)
    btsl    $3, 0x54(%rbx)
    push    0x58(%rbx)
    pop     0x60(%rbx)

    push    %rdi
    lea     message(%rip), %rsi
    lea     0x80(%rbx), %rdi
    mov     $2, %ecx
    rep movsq
    mov     $3, %ecx
    mov     $0x2a, %eax
    rep stosw
    pop     %rdi
    lea     message(%rip), %rsi
    mov     $9, %ecx
    mov     $0xe9, %edx
    rep outsb
    mov     $3, %ecx
    mov     $0x60, %edx
    rep insl
    finish

message:
    .ascii  "sixteen bytes ok"
