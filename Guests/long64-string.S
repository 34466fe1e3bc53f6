// String instructions with 64- and 32-bit addresses; long copies over page borders.
#include "guest.inc"
    .code64
    .globl _start
_start:
    mov     $0x20000, %rdi          // 12 KiB of pattern
    mov     $0x0123456789abcdef, %rax
    mov     $1536, %ecx
1:  stosq
    rol     $5, %rax
    add     %rcx, %rax
    loop    1b
    mov     $0x20003, %rsi          // an unaligned copy
    mov     $0x30005, %rdi
    mov     $9000, %ecx
    rep movsb
    mov     $0x30005, %rsi          // sum it up
    mov     $1125, %ecx
    xor     %ebx, %ebx
1:  lodsq
    add     %rax, %rbx
    loop    1b
    mov     %rbx, RESULTS
    std
    mov     $0x31ff8, %rsi          // downwards, overlapping
    mov     $0x32008, %rdi
    mov     $512, %ecx
    rep movsq
    cld
    mov     $0x32008, %rax
    mov     (%rax), %rax
    mov     %rax, RESULTS + 8
    mov     $0x20000, %rsi
    mov     $0x30000, %rdi
    mov     $1000, %ecx
    repne cmpsb
    mov     %rcx, RESULTS + 16
    pushfq
    pop     %rax
    and     $0x8d5, %eax
    mov     %rax, RESULTS + 24
    mov     $0x100020000, %rsi      // 32-bit addresses wrap it to 0x20000, and the results clear the upper halves
    mov     $0x100006028, %rdi
    mov     $0x100000003, %rcx
    .byte   0x67                    // address size
    rep movsl
    mov     %rsi, RESULTS + 0x40
    mov     %rdi, RESULTS + 0x48
    mov     %rcx, RESULTS + 0x50
    xor     %eax, %eax
    mov     $0x30000, %rdi
    mov     $-1, %rcx
    repne scasb
    not     %rcx
    mov     %rcx, RESULTS + 0x58
    finish
