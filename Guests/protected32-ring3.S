// To ring 3 and back: IRET, stack switch by the TSS, IOPL, privileged instructions (SDM vol. 3A §5, §6.12.1, §7).
#define COMPLETE
#include "guest.inc"
#include "exceptions32.inc"
    .code32
    .globl _start
_start:
    call    install_handlers
    movl    $0x7800, tss + 4                // ESP0
    movl    $DATA32, tss + 8                // SS0
    movw    $0x68, tss + 102                // the I/O map lies beyond the limit: no port allowed
    mov     $tss, %eax
    mov     %ax, 0x1000 + TSS + 2
    shr     $16, %eax
    mov     %al, 0x1000 + TSS + 4
    movw    $0x67, 0x1000 + TSS
    movw    $0x0089, 0x1000 + TSS + 5
    mov     $TSS, %eax
    ltr     %ax
    mov     $RESULTS, %edi
    mov     $USER_DATA, %eax
    mov     %eax, %ds
    mov     %eax, %es
    push    $USER_DATA
    push    $0x7400
    push    $0x202
    push    $USER_CODE32
    push    $user
    iret
user:
    mov     %cs, %eax
    record32 %eax
    mov     %ss, %eax
    record32 %eax
    expect  int $0x30
    expect  cli
    expect  in $0x60, %al
    expect  hlt
    expect  mov %cr0, %eax
    expect  int $0x06                       // a gate for ring 0 only: #GP with the vector
    mov     $DATA32, %eax
    expect  mov %eax, %fs                   // too privileged
    pushf
    pop     %eax
    record32 %eax
    push    $0x3002                         // IOPL and IF do not change from here
    popf
    pushf
    pop     %eax
    record32 %eax
    movw    $supervisor, idt + 8 * 48
    int     $0x30
supervisor:
    mov     %cs, %eax
    mov     %eax, RESULTS + 0xf00
    mov     %esp, %eax
    mov     %eax, RESULTS + 0xf04
    mov     4(%esp), %eax
    mov     %eax, RESULTS + 0xf08           // the caller's CS
    mov     12(%esp), %eax
    mov     %eax, RESULTS + 0xf0c           // and its ESP
    mov     16(%esp), %eax
    mov     %eax, RESULTS + 0xf10           // and its SS
    mov     $DATA32, %eax
    mov     %eax, %ds
    mov     %eax, %es
    finish

    .balign 8
tss:
    .fill   104, 1, 0
