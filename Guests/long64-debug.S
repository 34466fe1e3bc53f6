// Breakpoints of the debug registers (SDM vol. 3B §17.2, §17.3). Each #DB records: where, DR6, RF and TF of its frame, RCX.
#include "guest.inc"
    .set    WATCHED, 0x10ffc        // at the end of a page
    .set    COPY, 0x12000
    .set    IDLE, 0xffff0ff0
    .set    RF, 0x10000
    .set    TF, 0x100

// DR7 for breakpoint 0 and 1. Kinds: 0 instruction, 1 write, 2 port, 3 read or write; lengths: 0 1, 1 2, 2 8, 3 4.
.macro watch number, kind, length, address
    mov     $\address, %rax
    mov     %rax, %dr\number
    mov     $0x400 + (1 << (2 * \number)) + ((\kind + 4 * \length) << (16 + 4 * \number)), %eax
    mov     %rax, %dr7
.endm

// A mark between the parts.
.macro part number
    mov     $0x400, %eax
    mov     %rax, %dr7
    mov     $0xaa00 + \number, %eax
    record64 %rax
.endm

    .code64
    .globl _start
_start:
    mov     $handler, %eax
    mov     %ax, idt + 16
    movw    $CODE64, idt + 18
    movw    $0x8e00, idt + 20
    shr     $16, %eax
    mov     %ax, idt + 22
    lidt    idt_pointer
    mov     $RESULTS, %rdi
    xor     %ecx, %ecx

    part    1                       // stores against four watched bytes
    watch   0, 1, 3, 0x11000
    mov     $WATCHED, %rbx
    movl    $1, 4(%rbx)
    movb    $1, 7(%rbx)
    movb    $1, 8(%rbx)
    movq    $1, (%rbx)              // crosses into them
    movl    $1, (%rbx)
    mov     4(%rbx), %eax           // a load

    part    2                       // loads, stores and both
    watch   1, 3, 2, 0x11000
    mov     8(%rbx), %al
    lock xaddl %eax, 4(%rbx)
    cmpb    $1, 11(%rbx)
    mov     12(%rbx), %al
    mov     %rsp, %rdx
    lea     12(%rbx), %rsp
    push    %rdx
    pop     %rdx
    mov     %rdx, %rsp
    lea     4(%rbx), %rax

    part    3                       // an instruction, three times
    movq    $RF, resume
    watch   0, 0, 0, 1f
    mov     $3, %ecx
1:  dec     %ecx
    jnz     1b
    movq    $0, resume

    part    4                       // REP MOVS
    watch   0, 1, 0, COPY + 2
    mov     %rdi, %rdx
    mov     $WATCHED, %esi
    mov     $COPY, %edi
    mov     $5, %ecx
    // The handler records by way of RDI.
    mov     %rdx, results
    rep movsb
    mov     results, %rdi
    movq    $0, results

    part    5                       // behind MOV SS nothing comes
    movw    $DATA32, 4(%rbx)
    watch   0, 3, 1, 0x11000
    mov     4(%rbx), %ss
    nop
    nop

    part    6                       // one exception for a step and a store
    watch   0, 1, 0, 0x11000
    pushf
    orl     $TF, (%rsp)
    popf
    movb    $1, 4(%rbx)
    nop
    pushf
    andl    $~TF, (%rsp)
    popf

    part    7                       // general detect
    mov     $0x2400, %eax
    mov     %rax, %dr7
    mov     %dr3, %rax
    mov     %dr7, %rax
    record64 %rax

    part    8                       // INT1
    .byte   0xf1

    part    9                       // ports
    mov     %cr4, %rax
    or      $8, %rax
    mov     %rax, %cr4
    watch   1, 2, 0, WINDOW_PORT
    out     %al, $WINDOW_PORT
    part    10
    finish

handler:
    push    %rax
    push    %rdi
    cmpq    $0, results
    je      1f
    mov     results, %rdi
1:  mov     16(%rsp), %rax
    record64 %rax
    mov     %dr6, %rax
    record64 %rax
    mov     32(%rsp), %rax
    and     $RF + TF, %eax
    record64 %rax
    record64 %rcx
    mov     $IDLE, %eax
    mov     %rax, %dr6
    mov     resume, %rax
    or      %rax, 32(%rsp)
    cmpq    $0, results
    je      1f
    mov     %rdi, results
    pop     %rdi
    pop     %rax
    iretq
1:  add     $8, %rsp
    pop     %rax
    iretq

    .balign 8
resume:
    .quad   0
results:                            // where to record while RDI is in use
    .quad   0
idt_pointer:
    .word   16 * 2 - 1
    .quad   idt
    .balign 16
idt:
    .fill   4, 8, 0
