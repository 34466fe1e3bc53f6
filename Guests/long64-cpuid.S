// CPUID under paging: what the harness set, and an unknown leaf (SDM vol. 2A, CPUID).
#include "guest.inc"
    .code64
    .globl _start
_start:
    mov     $RESULTS, %rdi
    lea     leaves(%rip), %rsi
1:  lodsl
    cmp     $-1, %eax
    je      done
    mov     %eax, %r8d
    lodsl
    mov     %eax, %ecx
    mov     %r8d, %eax
    mov     $-1, %rbx               // the upper halves must come back zero
    cpuid
    record64 %rax
    record64 %rbx
    record64 %rcx
    record64 %rdx
    jmp     1b
done:
    finish

leaves:
    .long   0, 0
    .long   4, 1
    .long   0x40000000, 0
    .long   0x80000000, 0
    .long   -1
