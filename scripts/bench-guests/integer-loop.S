// 600 million instructions of an integer loop, as a multiboot image (Multiboot 0.6.96 §3.1) for Martlet and QEMU alike.
    .code32
    .section .text
    .globl _start
    .align 4
header:
    .long 0x1badb002
    .long 0
    .long -0x1badb002
_start:
    movl $100000000, %ecx
    xorl %eax, %eax
    movl $0x9e3779b9, %ebx
loop:
    addl %ebx, %eax
    xorl %ecx, %eax
    leal 3(%eax, %ecx, 2), %edx
    addl %edx, %ebx
    decl %ecx
    jnz loop
    // isa-debug-exit: process status 1.
    xorl %eax, %eax
    outl %eax, $0xf4
    hlt
