// Exceptions in 64-bit mode: codes, non-canonical addresses, page faults, an IST stack (SDM vol. 3A §6.14).
#include "guest.inc"
#include "exceptions64.inc"
    .set    PD, 0x4000
    .code64
    .globl _start
_start:
    call    install_handlers
#ifdef COMPLETE
    load_task_state
    gate    12, 0, 1                // a stack for #SS
#endif
    mov     $RESULTS, %rdi
    xor     %ebx, %ebx
    mov     $7, %eax
    xor     %edx, %edx
    expect  div %rbx
    mov     $0x8000000000000000, %rax
    mov     $-1, %rdx
    mov     $-1, %rbx
    expect  idiv %rbx               // the quotient does not fit
    expect  ud2
#ifdef COMPLETE
    expect  int3
    expect  int $0x30
#endif
    expect  .byte 0x06              // PUSH ES is no more
    mov     $0x800000000000, %rbx
    expect  mov (%rbx), %rax        // not canonical: #GP(0)
#ifdef COMPLETE
    mov     %rsp, %rbp
    lea     16(%rbx), %rsp
    expect  push %rax               // not canonical through SS: #SS(0)
    mov     %rbp, %rsp
#endif
    mov     $0x1230, %eax
    expect  mov %eax, %fs
#ifdef COMPLETE
    expect  int $0x31
#endif
    mov     $0x40000000, %rbx       // the first GiB is mapped
    expect  mov (%rbx), %rax
    expect  movb $1, 5(%rbx)
    expect  jmp *%rbx
    movq    $0, PD + 8 * 7          // 0xe00000: away
    invlpg  0xe00000
    expect  mov 0xe00000, %al
    movq    $0xe00081, PD + 8 * 7   // read-only
    mov     %cr0, %rax
    or      $0x10000, %rax
    mov     %rax, %cr0
    expect  movb $1, 0xe00000
    mov     %cr4, %rax
    or      $1 << 30, %rax          // a reserved bit
    expect  mov %rax, %cr4
    mov     $0xc0000080, %ecx
    mov     $0xffffffff, %eax
    expect  wrmsr                   // reserved bits of EFER
    finish
