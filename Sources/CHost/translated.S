// Entry into translated code and the places where it leaves for the interpreter's helpers.
//
// In translated code the guest's RAX RCX RDX RBX RBP RSI RDI R8-R11 are the host's, RSP is in r12, R12-R15 are in the
// state. r15 holds the state, r13 and r14 are scratch, rsp is the host's own stack, 16-byte aligned. The status flags
// are the host's.

#if defined(__x86_64__)
#include "cpu_translated.h"

    .text

.macro SAVE_REGISTERS
    movq %rcx, 8(%r15)
    movq %rdx, 16(%r15)
    movq %rbx, 24(%r15)
    movq %r12, 32(%r15)
    movq %rbp, 40(%r15)
    movq %rsi, 48(%r15)
    movq %rdi, 56(%r15)
    movq %r8, 64(%r15)
    movq %r9, 72(%r15)
    movq %r10, 80(%r15)
    movq %r11, 88(%r15)
.endm

.macro LOAD_REGISTERS
    movq 8(%r15), %rcx
    movq 16(%r15), %rdx
    movq 24(%r15), %rbx
    movq 32(%r15), %r12
    movq 40(%r15), %rbp
    movq 48(%r15), %rsi
    movq 56(%r15), %rdi
    movq 64(%r15), %r8
    movq 72(%r15), %r9
    movq 80(%r15), %r10
    movq 88(%r15), %r11
.endm

// RAX goes to the state first: LAHF and SETO need it.
.macro SAVE_FLAGS
    lahf
    seto %al
    movw %ax, MARTLET_STATUS(%r15)
.endm

.macro LOAD_FLAGS
    movw MARTLET_STATUS(%r15), %ax
    addb $127, %al
    sahf
.endm

.macro RETURN_TO_LOOP
    addq $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.endm

// struct martlet_insn *martlet_enter_translated(martlet_cpu *cpu, martlet_insn *insn)
    .globl martlet_enter_translated
    .type martlet_enter_translated, @function
    .balign 16
martlet_enter_translated:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    subq $8, %rsp
    movq %rdi, %r15
    movq MARTLET_INSN_HOST_CODE(%rsi), %r14
    LOAD_FLAGS
    LOAD_REGISTERS
    movq 0(%r15), %rax
    jmp *%r14
    .size martlet_enter_translated, . - martlet_enter_translated

// The next instruction is in r13.
    .type martlet_leave_translated, @function
    .balign 16
martlet_leave_translated:
    movq %rax, 0(%r15)
    SAVE_FLAGS
    SAVE_REGISTERS
    movq %r13, %rax
    RETURN_TO_LOOP
    .size martlet_leave_translated, . - martlet_leave_translated

// A data access that the TLB compare did not settle: guest address in r13, instruction in r14. Returns the host address
// in r13; the flags are lost (the caller has kept them where they matter).
    .type martlet_slow_access, @function
    .balign 16
martlet_slow_access:
    movq %rax, 0(%r15)
    SAVE_REGISTERS
    subq $8, %rsp
    movq %r15, %rdi
    movq %r14, %rsi
    movq %r13, %rdx
    movq %r14, %rbx
    call *MARTLET_HELPER_ACCESS(%r15)
    testq %rax, %rax
    jz 1f
    addq $8, %rsp
    movq %rax, %r13
    LOAD_REGISTERS
    movq 0(%r15), %rax
    ret
1:  movzbl MARTLET_INSN_POSITION(%rbx), %ecx
    addq %rcx, MARTLET_COUNT(%r15)
    movq MARTLET_LEAVE_WITH(%r15), %rax
    addq $16, %rsp
    RETURN_TO_LOOP
    .size martlet_slow_access, . - martlet_slow_access

// Has the interpreter execute the instruction in r14; goes on behind the call when that is where the guest goes on and
// no code was dropped meanwhile.
    .type martlet_call_interpreter, @function
    .balign 16
martlet_call_interpreter:
    movq %rax, 0(%r15)
    SAVE_FLAGS
    SAVE_REGISTERS
    subq $8, %rsp
    movq %r15, %rdi
    movq %r14, %rsi
    movq %r14, %rbx
    movq MARTLET_INVALIDATED(%r15), %rbp
    call *MARTLET_INSN_INTERPRETED(%r14)
    leaq MARTLET_INSN_SIZE(%rbx), %rcx
    cmpq %rcx, %rax
    jne 1f
    cmpq MARTLET_INVALIDATED(%r15), %rbp
    jne 1f
    addq $8, %rsp
    LOAD_FLAGS
    LOAD_REGISTERS
    movq 0(%r15), %rax
    ret
1:  movzbl MARTLET_INSN_POSITION(%rbx), %ecx
    addq %rcx, MARTLET_COUNT(%r15)
    addq $16, %rsp
    RETURN_TO_LOOP
    .size martlet_call_interpreter, . - martlet_call_interpreter

// Goes on at the guest address in r13; r14 has the branch, for the helper.
    .type martlet_jump_translated, @function
    .balign 16
martlet_jump_translated:
    movq %rax, 0(%r15)
    SAVE_FLAGS
    cmpl $0, MARTLET_ATTENTION(%r15)
    jne 2f
    movq %r13, %rax
    shrq $12, %rax
    xorq %r13, %rax
    andl $4095, %eax
    shll $5, %eax
    addq %r15, %rax
    cmpq MARTLET_JUMPS(%rax), %r13
    jne 2f
    movq MARTLET_JUMPS + 8(%rax), %r13
    cmpq MARTLET_FETCH_KEY(%r15), %r13
    jne 1f
    movq MARTLET_JUMPS + 24(%rax), %r13
    movq %r13, MARTLET_PAGE_RIP(%r15)
    movq MARTLET_JUMPS + 16(%rax), %r14
    movq MARTLET_INSN_HOST_CODE(%r14), %r13
    testq %r13, %r13
    jz 3f
    LOAD_FLAGS
    movq 0(%r15), %rax
    jmp *%r13
1:  movq MARTLET_JUMPS(%rax), %r13
// The loop counts the entry, and the blocks have counted themselves.
2:  decq MARTLET_COUNT(%r15)
    SAVE_REGISTERS
    movq %r15, %rdi
    movq %r14, %rsi
    movq %r13, %rdx
    call *MARTLET_HELPER_JUMP(%r15)
    RETURN_TO_LOOP
3:  decq MARTLET_COUNT(%r15)
    SAVE_REGISTERS
    movq %r14, %rax
    RETURN_TO_LOOP
    .size martlet_jump_translated, . - martlet_jump_translated

// A direct branch in r14 to the guest address in r13, whose translated target is not known yet.
    .type martlet_resolve_translated, @function
    .balign 16
martlet_resolve_translated:
    movq %rax, 0(%r15)
    SAVE_FLAGS
    decq MARTLET_COUNT(%r15)
    SAVE_REGISTERS
    movq %r15, %rdi
    movq %r14, %rsi
    movq %r13, %rdx
    call *MARTLET_HELPER_RESOLVE(%r15)
    RETURN_TO_LOOP
    .size martlet_resolve_translated, . - martlet_resolve_translated

// void martlet_install_exits(martlet_cpu *cpu)
    .globl martlet_install_exits
    .type martlet_install_exits, @function
    .balign 16
martlet_install_exits:
    leaq martlet_leave_translated(%rip), %rax
    movq %rax, MARTLET_LEAVE(%rdi)
    leaq martlet_jump_translated(%rip), %rax
    movq %rax, MARTLET_JUMP(%rdi)
    leaq martlet_slow_access(%rip), %rax
    movq %rax, MARTLET_SLOW_ACCESS(%rdi)
    leaq martlet_call_interpreter(%rip), %rax
    movq %rax, MARTLET_CALL_INTERPRETER(%rdi)
    leaq martlet_resolve_translated(%rip), %rax
    movq %rax, MARTLET_RESOLVE(%rdi)
    ret
    .size martlet_install_exits, . - martlet_install_exits

    .section .note.GNU-stack, "", @progbits
#endif
