// The way every kernel goes: real mode, protected mode, PAE paging, long mode (SDM vol. 3A §10.8.5).
#include "guest.inc"
    .code16
    .globl _start
_start:
    cli
    lgdtl   gdt_pointer
    mov     %cr0, %eax
    mov     %eax, RESULTS
    or      $1, %eax
    mov     %eax, %cr0
    ljmpl   $CODE32, $protected
    .code32
protected:
    mov     $DATA32, %eax
    mov     %eax, %ds
    mov     %eax, %es
    mov     %eax, %ss
    movl    $0x11111111, RESULTS + 4
    mov     %cr4, %eax
    or      $0x20, %eax             // PAE
    mov     %eax, %cr4
    mov     $0x2000, %eax
    mov     %eax, %cr3
    mov     $0xc0000080, %ecx       // EFER.LME
    rdmsr
    or      $0x100, %eax
    wrmsr
    mov     %cr0, %eax
    or      $0x80000000, %eax
    mov     %eax, %cr0
    rdmsr
    mov     %eax, RESULTS + 8       // LMA is set now
    ljmpl   $CODE64, $long_mode
    .code64
long_mode:
    mov     $0x2222222233333333, %rax
    mov     %rax, RESULTS + 16
    lea     here(%rip), %rbx
here:
    mov     %rbx, RESULTS + 24
    mov     $0x00d0000000000000, %r15
    bswap   %r15
    mov     %r15, RESULTS + 32
    finish

    .balign 8
gdt_pointer:
    .word   0x3f
    .long   0x1000
