// Exceptions with and without error codes in 32-bit protected mode (SDM vol. 3A §6.13, §6.15).
#include "guest.inc"
#include "exceptions32.inc"
    .code32
    .globl _start
_start:
    call    install_handlers
    mov     $RESULTS, %edi
    xor     %ebx, %ebx
    mov     $7, %eax
    expect  div %ebx
    expect  ud2
#ifdef COMPLETE
    expect  int3
    expect  int $0x30
    mov     $0x7fffffff, %eax
    add     $1, %eax
    expect  into
    expect  bound %eax, bounds
#endif
    mov     $0x1230, %eax
    expect  mov %eax, %fs                   // #GP(selector), beyond the table
    mov     $0x40, %eax
    expect  mov %eax, %gs                   // beyond the limit too: the table has eight entries
#ifdef COMPLETE
    expect  int $0x31                       // an empty gate: #NP or #GP with the vector and IDT bit
    expect  int $0x50                       // beyond the IDT
#endif
    xor     %eax, %eax
    expect  mov %eax, %ss                   // null SS
    mov     $CODE32, %eax
    expect  mov %eax, %ss                   // not writable
    mov     $0x80000000, %eax
    expect  mov %eax, %cr0                  // PG without PE
    mov     $1 << 30, %ecx
    expect  rdmsr                           // no such MSR
    mov     $0x123, %ecx
    expect  lldt %cx                        // not an LDT
    expect  .byte 0x0f, 0x0b                // UD2 once more, as bytes
    expect  .byte 0xf0, 0x01, 0xc0          // LOCK on a register: #UD
    finish

bounds:
    .long   0, 10
