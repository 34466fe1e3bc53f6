// x2APIC mode and the TSC-deadline timer (SDM vol. 3A §11.5.4.1, §11.12).
#include "guest.inc"
    .code64

// As in exceptions64.inc.
.macro interrupt_return
#ifdef COMPLETE
    iretq
#else
    mov     %rax, saved_rax
    mov     24(%rsp), %rax
    mov     %rax, saved_rsp
    mov     (%rsp), %rax
    mov     saved_rsp, %rsp
    push    %rax
    mov     saved_rax, %rax
    ret
#endif
.endm

.macro gate vector, label
    lea     \label(%rip), %rax
    mov     %ax, idt + 16 * \vector
    movw    $CODE64, idt + 16 * \vector + 2
    movw    $0x8e00, idt + 16 * \vector + 4
.endm

// x2APIC register as an MSR.
.macro read_apic register
    mov     $0x800 + (\register >> 4), %ecx
    rdmsr
.endm

.macro write_apic register, value
    mov     $0x800 + (\register >> 4), %ecx
    mov     $\value, %eax
    xor     %edx, %edx
    wrmsr
.endm

    .globl _start
_start:
    lidt    idt_pointer
    gate    13, on_protection
    gate    0x40, on_timer
    gate    0x41, on_message
    mov     $RESULTS, %rdi
    mov     $0x1b, %ecx                     // IA32_APIC_BASE: enabled, bootstrap processor
    rdmsr
    record64 %rax
    or      $0xc00, %eax
    wrmsr
    rdmsr
    record64 %rax
    read_apic 0x20
    record64 %rax
    read_apic 0xd0                          // LDR follows from the ID
    record64 %rax
    write_apic 0xf0, 0x1ff
    write_apic 0x3f0, 0x41                  // SELF IPI
    read_apic 0x220
    record64 %rax
    open_window
    write_apic 0x300, 0x40041               // ICR, shorthand self
    open_window
    write_apic 0x320, 0x40040               // TSC deadline
    rdtsc
    shl     $32, %rdx
    or      %rdx, %rax
    add     $20000000, %rax
    mov     %rax, %r12
    mov     %rax, %rdx
    shr     $32, %rdx
    mov     $0x6e0, %ecx
    wrmsr
    xor     %eax, %eax                      // no time on the handler's stack
    xor     %edx, %edx
    sti
    hlt
    cli
    rdtsc
    shl     $32, %rdx
    or      %rdx, %rax
    cmp     %r12, %rax                      // not before its time
    setae   %al
    movzx   %al, %eax
    record64 %rax
    mov     $0x6e0, %ecx                    // disarmed by firing
    rdmsr
    record64 %rax
    write_apic 0x320, 0x10040
    mov     $0x80e, %ecx                    // DFR does not exist here: #GP
    rdmsr
    xor     %edx, %edx
    xor     %eax, %eax
    xor     %r12d, %r12d
    finish_with_irqchip

on_timer:
    incl    RESULTS + 0x100
    jmp     acknowledge
on_message:
    incl    RESULTS + 0x104
acknowledge:
    push    %rax
    push    %rcx
    push    %rdx
    write_apic 0xb0, 0
    pop     %rdx
    pop     %rcx
    pop     %rax
    interrupt_return
on_protection:                              // all of them here are two bytes long
    incl    RESULTS + 0x108
    add     $8, %rsp
    addq    $2, (%rsp)
    interrupt_return

    .balign 8
saved_rax:
    .quad   0
saved_rsp:
    .quad   0
idt_pointer:
    .word   16 * 128 - 1
    .quad   idt
    .balign 16
idt:
    .fill   256, 8, 0
