// Entry into translated code and the places where it leaves for the interpreter's helpers.
//
// In translated code the guest's RAX RCX RDX RBX RBP RSI RDI R8-R11 are the host's, RSP is in r12, R12-R15 are in the
// state. r15 holds the state, r13 and r14 are scratch, rsp is the host's own stack, 16-byte aligned. The status flags
// are the host's. The vector registers and MXCSR are the guest's as far as the state's vector level says: bit 0 XMM,
// bit 1 YMM too, bit 2 ZMM and the mask registers too; bit 3 the x87 registers and control word.

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

// Swift and C code may use every vector register: the guest's go to the state while they run. Changes the flags and RCX.
.macro SAVE_VECTORS
    cmpl $0, MARTLET_VECTOR_LEVEL(%r15)
    je 99f
    call martlet_save_vectors
99:
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

// The line of the TLB for the address in a register, in place of it. Its read tag is there, the other fields are in planes
// behind.
    .set WRITE_TAG, MARTLET_TLB_PLANE_SIZE
    .set ADDEND, 2 * MARTLET_TLB_PLANE_SIZE
    .set LINE_FLAGS, 3 * MARTLET_TLB_PLANE_SIZE
.macro TLB_LINE register, low
    shrq $9, \register
    andl $((4096 - 1) << 3), \low
    addq MARTLET_TLB(%r15), \register
.endm

// The same with less code at the site: its number on the stack, and in r14 how far the address is from the tag.
    .globl martlet_number_missed
    .type martlet_number_missed, @function
    .balign 16
martlet_number_missed:
    popq %r13
    shlq $6, %r13
    addq MARTLET_RECORDS(%r15), %r13
    testb $4, SITE_KIND(%r13)
    jnz 1f
    addq SITE_TAG(%r13), %r14
    xchgq %r13, %r14
    jmp martlet_site_missed
1:  testb $2, SITE_FLAGS(%r13)
    jnz 2f
    xorq SITE_TAG(%r13), %r14
    xchgq %r13, %r14
    jmp martlet_site_missed
2:  movq %rcx, 8(%r15)                  // a group's: rotated by the bits that must be 0
    movzbl SITE_SIZE(%r13), %ecx
    bsfl %ecx, %ecx
    rolq %cl, %r14
    movq 8(%r15), %rcx
    addq SITE_TAG(%r13), %r14
    xchgq %r13, %r14
    jmp martlet_site_missed
    .size martlet_number_missed, . - martlet_number_missed

// And with the guest's flags in the host's: the site's number on the stack, the guest address in r13.
    .globl martlet_number_missed_flags
    .type martlet_number_missed_flags, @function
    .balign 16
martlet_number_missed_flags:
    popq %r14
    movq %rax, 0(%r15)
    SAVE_FLAGS
    movq 0(%r15), %rax
    shlq $6, %r14
    addq MARTLET_RECORDS(%r15), %r14
    jmp martlet_site_missed
    .size martlet_number_missed_flags, . - martlet_number_missed_flags

// A data access whose page is not the one that its site used last: guest address in r13, site in r14. Fills the site
// from the TLB and tries again, or has the helper resolve this one access. The flags are lost (where they matter they
// are in the state already).
    .type martlet_site_missed, @function
    .balign 16
martlet_site_missed:
    movq %rax, 0(%r15)
    movq %rcx, 8(%r15)
    movq %rdx, 16(%r15)
    incq MARTLET_SITE_MISSES(%r15)
    testb $4, SITE_KIND(%r14)           // must be aligned
    jz 0f
    movzbl SITE_SIZE(%r14), %eax
    decl %eax
    testl %r13d, %eax
    jnz 3f
0:  testb $32, SITE_FLAGS(%r14)
    jnz 3f
    testb $64, SITE_FLAGS(%r14)         // 32-bit code: no line from 4 GiB on is its
    jz 18f
    movq %r13, %rax
    shrq $32, %rax
    jnz 3f
18: movq %r13, %rax
    TLB_LINE %rax, %eax
    leaq WRITE_TAG(%rax), %rdx
    testb $2, SITE_KIND(%r14)
    cmovzq %rax, %rdx
    movq (%rdx), %rcx
    movq %r13, %rdx
    subq %rcx, %rdx
    movzwl SITE_LIMIT(%r14), %ecx
    cmpq %rcx, %rdx
    ja 3f
    movq ADDEND(%rax), %rcx
    movq LINE_FLAGS(%rax), %rax
    testb $2, %al
    jnz 5f
    movq %rcx, SITE_ADDEND(%r14)
    movq %r13, %rcx
    subq %rdx, %rcx
    movq %rcx, SITE_TAG(%r14)
    shrq $12, %rcx
    movl %ecx, %edx                     // the page's number
    andl $4095, %ecx
    testb $1, %al
    jnz 1f
    btsl %ecx, MARTLET_SITE_PAGES(%r15)
    testb $1, SITE_FLAGS(%r14)
    jnz 18f
    orb $1, SITE_FLAGS(%r14)
    movl MARTLET_LOCAL_SITE_COUNT(%r15), %ecx
    movl %ecx, SITE_LOCAL_INDEX(%r14)
    movq MARTLET_LOCAL_SITES(%r15), %rax
    incl MARTLET_LOCAL_SITE_COUNT(%r15)
    movq %r14, (%rax, %rcx, 8)
18: movl SITE_LOCAL_INDEX(%r14), %ecx
    movq MARTLET_LOCAL_SITE_NUMBERS(%r15), %rax
    movl %edx, (%rax, %rcx, 4)
    jmp 2f
1:  btsl %ecx, MARTLET_SITE_PAGES + 512(%r15)
    testb $16, SITE_FLAGS(%r14)
    jnz 19f
    orb $16, SITE_FLAGS(%r14)
    movl MARTLET_GLOBAL_SITE_COUNT(%r15), %ecx
    movl %ecx, SITE_GLOBAL_INDEX(%r14)
    movq MARTLET_GLOBAL_SITES(%r15), %rax
    incl MARTLET_GLOBAL_SITE_COUNT(%r15)
    movq %r14, (%rax, %rcx, 8)
19: movl SITE_GLOBAL_INDEX(%r14), %ecx
    movq MARTLET_GLOBAL_SITE_NUMBERS(%r15), %rax
    movl %edx, (%rax, %rcx, 4)
2:  incb SITE_MISSES(%r14)
    jz 15f
16: movq 16(%r15), %rdx
    movq 8(%r15), %rcx
23: testb $16, SITE_KIND(%r14)
    jz 24f
    LOAD_FLAGS
24: movq 0(%r15), %rax
    jmp *SITE_RETRY(%r14)

// After each 256 misses: whether it misses so often that its code should look at the TLB each time.
15: testb $128, SITE_FLAGS(%r14)
    jz 16b
    movq 16(%r15), %rdx
    movq 8(%r15), %rcx
    SAVE_REGISTERS
    movl MARTLET_VECTOR_LEVEL(%r15), %ebx
    SAVE_VECTORS
    movq %r15, %rdi
    movq SITE_INSN(%r14), %rsi
    movq %r14, %rdx
    call *MARTLET_HELPER_HOP(%r15)
    testl %ebx, %ebx
    jz 17f
    movl %ebx, %r13d
    call martlet_restore_vectors
17: LOAD_REGISTERS
    jmp 23b

// Not settled by the TLB.
3:  testb $2, SITE_FLAGS(%r14)
    jnz 6f
    movq 16(%r15), %rdx
    movq 8(%r15), %rcx
    SAVE_REGISTERS
    movl MARTLET_VECTOR_LEVEL(%r15), %ebx
    SAVE_VECTORS
    movzbl SITE_KIND(%r14), %eax
    andl $7, %eax
    shll $8, %eax
    movb SITE_SIZE(%r14), %al
    movq %rax, MARTLET_ACCESS_KIND(%r15)
    movq %r15, %rdi
    movq SITE_INSN(%r14), %rsi
    movq %r13, %rdx
    call *MARTLET_HELPER_ACCESS(%r15)
    testq %rax, %rax
    jz 4f
    movq %rax, MARTLET_ACCESS_ADDRESS(%r15)
    testl %ebx, %ebx
    jz 7f
    movq %r13, %rbp
    movl %ebx, %r13d
    call martlet_restore_vectors
    movq %rbp, %r13
7:  LOAD_REGISTERS
    jmp 8f
4:  movq SITE_INSN(%r14), %rcx
    movzbl MARTLET_INSN_POSITION(%rcx), %ecx
    addq %rcx, MARTLET_COUNT(%r15)
    movq MARTLET_LEAVE_WITH(%r15), %rax
    RETURN_TO_LOOP

// This access only: the host address, or what makes it one.
5:  testb $2, SITE_FLAGS(%r14)
    jnz 6f
    addq %r13, %rcx
    movq %rcx, MARTLET_ACCESS_ADDRESS(%r15)
    movq 16(%r15), %rdx
    movq 8(%r15), %rcx
    jmp 8f
8:  movzbl SITE_AFTER(%r14), %eax
    testb $4, SITE_FLAGS(%r14)
    jz 9f
    movq %r13, MARTLET_ACCESS_KIND(%r15)
    movq MARTLET_ACCESS_ADDRESS(%r15), %r13
    subq MARTLET_ACCESS_KIND(%r15), %r13
    jmp 10f
9:  movq MARTLET_ACCESS_ADDRESS(%r15), %r13
10: addq SITE_RETRY(%r14), %rax
    testb $16, SITE_KIND(%r14)
    movq %rax, %r14
    jz 25f
    LOAD_FLAGS
25: movq 0(%r15), %rax
    jmp *%r14

// One compare for several accesses does not do: each on its own.
6:  movq SITE_ALTERNATIVE(%r14), %rax
    testq %rax, %rax
    jz 12f
11: movq 16(%r15), %rdx
    movq 8(%r15), %rcx
    movq %rax, %r13
    testb $8, SITE_FLAGS(%r14)
    jz 13f
    LOAD_FLAGS
13: movq 0(%r15), %rax
    jmp *%r13
12: movq 16(%r15), %rdx
    movq 8(%r15), %rcx
    SAVE_REGISTERS
    SAVE_VECTORS
    movq %r15, %rdi
    movq SITE_INSN(%r14), %rsi
    movq %r14, %rdx
    call *MARTLET_HELPER_ALTERNATIVE(%r15)
    testq %rax, %rax
    jz 14f
    movq %rax, MARTLET_ACCESS_ADDRESS(%r15)
    LOAD_REGISTERS
    movq %rcx, 8(%r15)
    movq %rdx, 16(%r15)
    movq MARTLET_ACCESS_ADDRESS(%r15), %rax
    jmp 11b
// No room for it: the instruction is interpreted, and what follows in its block.
14: movq SITE_INSN(%r14), %rsi
    movzbl MARTLET_INSN_POSITION(%rsi), %ecx
    addq %rcx, MARTLET_COUNT(%r15)
    movq %r15, %rdi
    call *MARTLET_INSN_INTERPRETED(%rsi)
    RETURN_TO_LOOP
    .size martlet_site_missed, . - martlet_site_missed

// Has the interpreter execute the instruction in r14; goes on behind the call when that is where the guest goes on and
// no code was dropped meanwhile.
    .type martlet_call_interpreter, @function
    .balign 16
martlet_call_interpreter:
    movq %rax, 0(%r15)
    SAVE_FLAGS
    SAVE_REGISTERS
    subq $8, %rsp
    SAVE_VECTORS
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
    cmpl $0, MARTLET_ATTENTION(%r15)
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

// REP MOVS and REP STOS, for the instruction in r14: upwards, not single-stepped, inside one page at each end, by two
// looks into the TLB and the host's own instruction. The interpreter has all else. `flags`: they can be read behind it.
// `flat32`: of 32-bit code. Offsets that are none (left from 64-bit code) are the interpreter's; those behind the last
// element wrap at 4 GiB.
.macro REP_BEGIN shift, flags, flat32
    movq %rax, 0(%r15)
    .if \flags
    SAVE_FLAGS
    .endif
    movq %rdx, 16(%r15)
    testl $0x500, MARTLET_RFLAGS(%r15)  // DF, TF
    jnz 9f
    cmpq $(4096 >> \shift), %rcx
    ja 9f
    testq %rcx, %rcx
    jz 8f
    .if \flat32
    movq %rdi, %rdx
    shrq $32, %rdx
    jnz 9f
    .endif
    movl %ecx, %edx
    .if \shift
    shll $\shift, %edx
    .endif
    negl %edx
    addl $4096, %edx                    // the last offset in a page where it all fits
    movq %rdi, %r13
    TLB_LINE %r13, %r13d
    movq %rdi, %rax
    subq WRITE_TAG(%r13), %rax
    cmpq %rdx, %rax
    ja 9f
.endm

.macro REP_END flags
8:  movq 16(%r15), %rdx
    .if \flags
    LOAD_FLAGS
    .endif
    movq 0(%r15), %rax
    ret
9:  movq 16(%r15), %rdx
    .if \flags
    LOAD_FLAGS
    .endif
    movq 0(%r15), %rax
    jmp martlet_call_interpreter
.endm

// Moves a pointer by rdx.
.macro REP_ADVANCE register, low, flat32
    .if \flat32
    addl %edx, \low
    .else
    addq %rdx, \register
    .endif
.endm

.macro REP_MOVS name, insn, shift, flags, flat32
    .type \name, @function
    .balign 16
\name:
    REP_BEGIN \shift, \flags, \flat32
    movq ADDEND(%r13), %rax
    addq %rdi, %rax
    movq %rax, MARTLET_ACCESS_ADDRESS(%r15)
    movq %rsi, %rax
    .if \flat32
    shrq $32, %rax
    jnz 9f
    movl %esi, %eax
    .endif
    TLB_LINE %rax, %eax
    movq %rsi, %r13
    subq (%rax), %r13                   // read tag
    cmpq %rdx, %r13
    ja 9f
    movq ADDEND(%rax), %r13
    addq %rsi, %r13
    movq %rsi, 48(%r15)
    movq %rdi, 56(%r15)
    movq %r13, %rsi
    movq MARTLET_ACCESS_ADDRESS(%r15), %rdi
    rep \insn
    negl %edx
    addl $4096, %edx
    movq 48(%r15), %rsi
    REP_ADVANCE %rsi, %esi, \flat32
    movq 56(%r15), %rdi
    REP_ADVANCE %rdi, %edi, \flat32
    REP_END \flags
    .size \name, . - \name
.endm

.macro REP_STOS name, insn, shift, flags, flat32
    .type \name, @function
    .balign 16
\name:
    REP_BEGIN \shift, \flags, \flat32
    movq ADDEND(%r13), %rax
    addq %rdi, %rax
    movq %rdi, 56(%r15)
    movq %rax, %rdi
    movq 0(%r15), %rax
    rep \insn
    negl %edx
    addl $4096, %edx
    movq 56(%r15), %rdi
    REP_ADVANCE %rdi, %edi, \flat32
    REP_END \flags
    .size \name, . - \name
.endm

    .irp flags, 0, 1
    REP_MOVS martlet_rep_movsb\flags, movsb, 0, \flags, 0
    REP_MOVS martlet_rep_movsw\flags, movsw, 1, \flags, 0
    REP_MOVS martlet_rep_movsl\flags, movsl, 2, \flags, 0
    REP_MOVS martlet_rep_movsq\flags, movsq, 3, \flags, 0
    REP_STOS martlet_rep_stosb\flags, stosb, 0, \flags, 0
    REP_STOS martlet_rep_stosw\flags, stosw, 1, \flags, 0
    REP_STOS martlet_rep_stosl\flags, stosl, 2, \flags, 0
    REP_STOS martlet_rep_stosq\flags, stosq, 3, \flags, 0
    REP_MOVS martlet_rep_flat_movsb\flags, movsb, 0, \flags, 1
    REP_MOVS martlet_rep_flat_movsw\flags, movsw, 1, \flags, 1
    REP_MOVS martlet_rep_flat_movsl\flags, movsl, 2, \flags, 1
    REP_STOS martlet_rep_flat_stosb\flags, stosb, 0, \flags, 1
    REP_STOS martlet_rep_flat_stosw\flags, stosw, 1, \flags, 1
    REP_STOS martlet_rep_flat_stosl\flags, stosl, 2, \flags, 1
    .endr

// Goes on at the guest address in r13; r14 has the branch's target record, which learns the way. First by the targets
// that all branches share, with the flags left alone.
    .type martlet_jump_translated, @function
    .balign 16
martlet_jump_translated:
    movq %rcx, 8(%r15)
    movq %rbx, 24(%r15)
    movzwl %r13w, %ecx
    leaq (, %rcx, 8), %rcx
    leaq MARTLET_SHARED_TARGETS_OFFSET(%r15, %rcx, 4), %rbx
    movq (%rbx), %rcx
    leaq (%rcx, %r13), %rcx
    jrcxz 10f
11: movq 24(%r15), %rbx
    movq 8(%r15), %rcx
    jmp 14f
10: movq 8(%rbx), %rcx
    movq %r13, MARTLET_ACCESS_ADDRESS(%r15)
    movq MARTLET_FETCH_KEY(%r15), %r13
    leaq (%rcx, %r13), %rcx
    movl MARTLET_ATTENTION(%r15), %r13d
    leaq (%rcx, %r13), %rcx
    movq MARTLET_ACCESS_ADDRESS(%r15), %r13
    jrcxz 12f
    jmp 11b
// A record that has no target of this fetch generation takes this one.
12: movq TARGET_NEGATIVE_KEY(%r14), %rcx
    movq MARTLET_FETCH_KEY(%r15), %r13
    leaq (%rcx, %r13), %rcx
    movq MARTLET_ACCESS_ADDRESS(%r15), %r13
    jrcxz 13f
    jmp 11b
13: movq 24(%rbx), %rcx
    movq %rcx, MARTLET_PAGE_RIP(%r15)
    movq 16(%rbx), %r13
    movq 24(%r15), %rbx
    movq 8(%r15), %rcx
    jmp *%r13
14: movq %rax, 0(%r15)
    SAVE_FLAGS
    incq MARTLET_TARGET_MISSES(%r15)
    cmpl $0, MARTLET_ATTENTION(%r15)
    jne 2f
    movq %r13, %rax
    shrq $12, %rax
    xorq %r13, %rax
    xorl MARTLET_JUMP_SALT(%r15), %eax
    andl $4095, %eax
    shll $5, %eax
    addq %r15, %rax
    cmpq MARTLET_JUMPS(%rax), %r13
    jne 2f
    movq %rcx, 8(%r15)
    movq MARTLET_JUMPS + 8(%rax), %rcx
    cmpq MARTLET_FETCH_KEY(%r15), %rcx
    jne 1f
    movq %rdx, 16(%r15)
    movq MARTLET_JUMPS + 16(%rax), %rdx
    movq MARTLET_JUMPS + 24(%rax), %rax
    movq %rax, MARTLET_PAGE_RIP(%r15)
    cmpq $0, MARTLET_INSN_HOST_CODE(%rdx)
    je 3f
    movq %rax, TARGET_PAGE_RIP(%r14)
    movq MARTLET_INSN_HOST_CODE(%rdx), %rax
    movzwl %r13w, %edx
    shll $5, %edx
    leaq MARTLET_SHARED_TARGETS_OFFSET(%r15, %rdx), %rdx
    movq %rax, TARGET_HOST(%r14)
    movq %rax, 16(%rdx)
    negq %rcx
    movq %rcx, TARGET_NEGATIVE_KEY(%r14)
    movq %rcx, 8(%rdx)
    movq TARGET_PAGE_RIP(%r14), %rcx
    movq %rcx, 24(%rdx)
    movq %r13, TARGET_RIP(%r14)
    negq %r13
    movq %r13, TARGET_NEGATIVE_RIP(%r14)
    movq %r13, (%rdx)
    movq %rax, %r13
    LOAD_FLAGS
    movq 16(%r15), %rdx
    movq 8(%r15), %rcx
    movq 0(%r15), %rax
    jmp *%r13
1:  movq 8(%r15), %rcx
// The loop counts the entry, and the blocks have counted themselves.
2:  decq MARTLET_COUNT(%r15)
    SAVE_REGISTERS
    SAVE_VECTORS
    movq %r15, %rdi
    movq TARGET_INSN(%r14), %rsi
    movq %r13, %rdx
    call *MARTLET_HELPER_JUMP(%r15)
    RETURN_TO_LOOP
3:  decq MARTLET_COUNT(%r15)
    movq %rdx, %r13
    movq 16(%r15), %rdx
    movq 8(%r15), %rcx
    SAVE_REGISTERS
    SAVE_VECTORS
    movq %r13, %rax
    RETURN_TO_LOOP
    .size martlet_jump_translated, . - martlet_jump_translated

// A direct branch, its number on the stack, whose translated target is not known yet.
    .globl martlet_resolve_translated
    .type martlet_resolve_translated, @function
    .balign 16
martlet_resolve_translated:
    movq %rax, 0(%r15)
    SAVE_FLAGS
    popq %r14
    decq MARTLET_COUNT(%r15)
    SAVE_REGISTERS
    SAVE_VECTORS
    movq %r15, %rdi
    movq %r14, %rsi
    call *MARTLET_HELPER_RESOLVE(%r15)
    RETURN_TO_LOOP
    .size martlet_resolve_translated, . - martlet_resolve_translated

// A block in r14 was entered as often as its trial lasts: it is translated anew and entered again.
    .globl martlet_trial_ended
    .type martlet_trial_ended, @function
    .balign 16
martlet_trial_ended:
    movq %rax, 0(%r15)
    SAVE_FLAGS
    decq MARTLET_COUNT(%r15)
    SAVE_REGISTERS
    SAVE_VECTORS
    movq %r15, %rdi
    movq %r14, %rsi
    call *MARTLET_HELPER_TRIAL(%r15)
    movq %r14, %rax
    RETURN_TO_LOOP
    .size martlet_trial_ended, . - martlet_trial_ended

// A return to the address that stands for "none": as if by the interpreter.
    .type martlet_lost_return, @function
    .balign 16
martlet_lost_return:
    movq %rax, 0(%r15)
    SAVE_FLAGS
    SAVE_REGISTERS
    SAVE_VECTORS
    movq %r13, MARTLET_RIP(%r15)
    xorl %eax, %eax
    RETURN_TO_LOOP
    .size martlet_lost_return, . - martlet_lost_return

// The guest's vector and x87 registers to the state, and the host's control words back. Changes RCX.
    .type martlet_save_vectors, @function
    .balign 16
martlet_save_vectors:
    movl MARTLET_VECTOR_LEVEL(%r15), %ecx
    movl $0, MARTLET_VECTOR_LEVEL(%r15)
    testl $8, %ecx
    jz 9f
    pushq %rax
    pushq %rdx
    movl $1, %eax
    xorl %edx, %edx
    xsave64 MARTLET_FX(%r15)
    movq MARTLET_X87_OPCODE(%r15), %rax
    movw %ax, MARTLET_FX + 6(%r15)
    movq MARTLET_X87_INSTRUCTION(%r15), %rax
    movq %rax, MARTLET_FX + 8(%r15)
    movq MARTLET_X87_DATA(%r15), %rax
    movq %rax, MARTLET_FX + 16(%r15)
    // FNINIT costs much on some processors; EMMS does where the control word is the host's own.
    cmpw $0x37F, MARTLET_FX(%r15)
    jne 7f
    emms
    jmp 8f
7:  fninit
8:  popq %rdx
    popq %rax
9:  testl $7, %ecx
    jnz martlet_save_wide
    ret
    .size martlet_save_vectors, . - martlet_save_vectors

// The vector registers alone, of the level in ECX.
    .type martlet_save_wide, @function
martlet_save_wide:
    stmxcsr MARTLET_MXCSR(%r15)
    ldmxcsr MARTLET_HOST_MXCSR(%r15)
    testl $4, %ecx
    jnz 3f
    testl $2, %ecx
    jnz 2f
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    movaps %xmm\n, MARTLET_ZMM + \n * 64(%r15)
    .endr
    ret
2:  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    vmovaps %ymm\n, MARTLET_ZMM + \n * 64(%r15)
    .endr
    vzeroupper
    ret
3:  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    vmovaps %zmm\n, MARTLET_ZMM + \n * 64(%r15)
    .endr
    .irp n, 0,1,2,3,4,5,6,7
    kmovq %k\n, MARTLET_OPMASK + \n * 8(%r15)
    .endr
    vzeroupper
    ret
    .size martlet_save_wide, . - martlet_save_wide

// The guest's vector and x87 registers from the state, as far as the level in r13 says.
    .type martlet_restore_vectors, @function
    .balign 16
martlet_restore_vectors:
    movl %r13d, MARTLET_VECTOR_LEVEL(%r15)
    testl $8, %r13d
    jz 9f
    call martlet_restore_x87
9:  testl $7, %r13d
    jnz martlet_restore_wide
    ret
    .size martlet_restore_vectors, . - martlet_restore_vectors

    .type martlet_restore_x87, @function
martlet_restore_x87:
    pushq %rax
    pushq %rdx
    movq $1, MARTLET_FX_HEADER(%r15)
    movl $1, %eax
    xorl %edx, %edx
    xrstor64 MARTLET_FX(%r15)
    movzwl MARTLET_FX + 6(%r15), %eax
    movq %rax, MARTLET_X87_OPCODE(%r15)
    movq MARTLET_FX + 8(%r15), %rax
    movq %rax, MARTLET_X87_INSTRUCTION(%r15)
    movq MARTLET_FX + 16(%r15), %rax
    movq %rax, MARTLET_X87_DATA(%r15)
    popq %rdx
    popq %rax
    ret
    .size martlet_restore_x87, . - martlet_restore_x87

// The vector registers alone, and MXCSR.
    .type martlet_restore_wide, @function
martlet_restore_wide:
    ldmxcsr MARTLET_MXCSR(%r15)
    testl $4, %r13d
    jnz 6f
    testl $2, %r13d
    jnz 5f
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    movaps MARTLET_ZMM + \n * 64(%r15), %xmm\n
    .endr
    ret
5:  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    vmovaps MARTLET_ZMM + \n * 64(%r15), %ymm\n
    .endr
    ret
6:  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    vmovaps MARTLET_ZMM + \n * 64(%r15), %zmm\n
    .endr
    .irp n, 0,1,2,3,4,5,6,7
    kmovq MARTLET_OPMASK + \n * 8(%r15), %k\n
    .endr
    ret
    .size martlet_restore_wide, . - martlet_restore_wide

// Makes the vector registers the guest's, as far as the level in r13 says, for the instruction in r14. Where the guest
// may not use them now, or has unmasked an exception that the host would take, the interpreter executes the
// instruction and translated code is left. The flags are lost.
    .type martlet_load_vectors, @function
    .balign 16
martlet_load_vectors:
    movq %rcx, 8(%r15)
    testb $0x0C, MARTLET_CR0(%r15)      // EM, TS
    jnz 9f
    testl $7, %r13d
    jz 10f
    testb $2, MARTLET_CR4 + 1(%r15)     // OSFXSR
    jz 9f
    movl MARTLET_MXCSR(%r15), %ecx
    notl %ecx
    testl $0x1F80, %ecx
    jnz 8f
1:  testl $6, %r13d
    jz 2f
    testb $4, MARTLET_CR4 + 2(%r15)     // OSXSAVE
    jz 9f
    movl MARTLET_XCR0(%r15), %ecx
    notl %ecx
    testl $6, %ecx
    jnz 9f
    // AVX instructions clear what lies above their results: where there is AVX-512, that is seen.
    testl $0xE0, %ecx
    jz 4f
    testl $4, %r13d
    jnz 9f
    jmp 2f
4:  orl $4, %r13d
2:  movl MARTLET_VECTOR_LEVEL(%r15), %ecx
    andl $8, %ecx
    orl %ecx, %r13d
    movl MARTLET_VECTOR_LEVEL(%r15), %ecx
    movl %r13d, MARTLET_VECTOR_LEVEL(%r15)
    testl $7, %ecx
    jz 3f
    // A wider view of registers that are partly here: by way of the state.
    call martlet_save_wide
3:  call martlet_restore_wide
    movq 8(%r15), %rcx
    ret
// x87 and MMX: all exceptions masked, none pending.
10: movzwl MARTLET_FX(%r15), %ecx
    notl %ecx
    testl $0x3F, %ecx
    jnz 9f
    testb $0x80, MARTLET_FX + 2(%r15)
    jnz 9f
    orl $8, MARTLET_VECTOR_LEVEL(%r15)
    call martlet_restore_x87
    movq 8(%r15), %rcx
    ret
// While the registers are here, MXCSR is too, and has been looked at.
8:  testl $7, MARTLET_VECTOR_LEVEL(%r15)
    jnz 1b
9:  movq 8(%r15), %rcx
    movq %rax, 0(%r15)
    SAVE_REGISTERS
    addq $8, %rsp
    SAVE_VECTORS
    movzbl MARTLET_INSN_POSITION(%r14), %ecx
    addq %rcx, MARTLET_COUNT(%r15)
    movq %r15, %rdi
    movq %r14, %rsi
    call *MARTLET_INSN_INTERPRETED(%r14)
    RETURN_TO_LOOP
    .size martlet_load_vectors, . - martlet_load_vectors

// void martlet_serialize(void): IRET to the caller.
    .globl martlet_serialize
    .type martlet_serialize, @function
    .balign 16
martlet_serialize:
    movq %rsp, %rdx
    movl %ss, %eax
    pushq %rax
    pushq %rdx
    pushfq
    movl %cs, %eax
    pushq %rax
    leaq 1f(%rip), %rax
    pushq %rax
    iretq
1:  ret
    .size martlet_serialize, . - martlet_serialize

// void martlet_install_exits(martlet_cpu *cpu)
    .globl martlet_install_exits
    .type martlet_install_exits, @function
    .balign 16
martlet_install_exits:
    leaq martlet_jump_translated(%rip), %rax
    movq %rax, MARTLET_JUMP(%rdi)
    leaq martlet_site_missed(%rip), %rax
    movq %rax, MARTLET_SITE_MISS(%rdi)
    leaq martlet_call_interpreter(%rip), %rax
    movq %rax, MARTLET_CALL_INTERPRETER(%rdi)
    leaq martlet_lost_return(%rip), %rax
    movq %rax, MARTLET_LOST_RETURN(%rdi)
    leaq martlet_load_vectors(%rip), %rax
    movq %rax, MARTLET_LOAD_VECTORS(%rdi)
    stmxcsr MARTLET_HOST_MXCSR(%rdi)
    // Sixteen bytes for each; 32-bit code has no quads.
    .set place, MARTLET_STRING_OPERATIONS
    .irp name, movsb, movsw, movsl, movsq, stosb, stosw, stosl, stosq
    leaq martlet_rep_\name\()0(%rip), %rax
    movq %rax, place(%rdi)
    leaq martlet_rep_\name\()1(%rip), %rax
    movq %rax, place + 8(%rdi)
    .set place, place + 16
    .endr
    .irp name, movsb, movsw, movsl, movsl, stosb, stosw, stosl, stosl
    leaq martlet_rep_flat_\name\()0(%rip), %rax
    movq %rax, place(%rdi)
    leaq martlet_rep_flat_\name\()1(%rip), %rax
    movq %rax, place + 8(%rdi)
    .set place, place + 16
    .endr
    ret
    .size martlet_install_exits, . - martlet_install_exits

    .section .note.GNU-stack, "", @progbits
#endif
