// Ports and memory-mapped registers from 32-bit code without paging.
#include "guest.inc"
    .code32
    .globl _start
_start:
    mov     $RESULTS, %edi
    mov     $0x80000001, %eax
    mov     $0xcf8, %edx
    out     %eax, %dx
    mov     $0xcfc, %edx
    in      %dx, %eax
    record32 %eax
    in      %dx, %ax
    record32 %eax

    movb    $0x11, MMIO
    movw    $0x2222, MMIO + 2
    movl    $0x33333333, MMIO + 4
    mov     $0x44556677, %eax
    mov     %eax, MMIO + 0x10
    mov     %ah, MMIO + 0x11
    movzbl  MMIO + 0x20, %eax
    record32 %eax
    movzwl  MMIO + 0x22, %eax
    record32 %eax
    mov     MMIO + 0x24, %eax
    record32 %eax
    movsbl  MMIO + 0x28, %eax
    record32 %eax
    mov     MMIO + 0x2d, %eax               // unaligned, inside eight bytes
    record32 %eax
    orl     $0x0f, MMIO + 0x30              // read, then write
    addb    $1, MMIO + 0x34
    mov     $5, %eax
    xchg    %eax, MMIO + 0x38
    record32 %eax
    cmpl    $0, MMIO + 0x3c
    pushf
    pop     %eax
    and     $0x8d5, %eax
    record32 %eax
    push    MMIO + 0x40
    pop     %eax
    record32 %eax

    mov     $message, %esi                  // strings to and from a device
    push    %edi
    mov     $MMIO + 0x80, %edi
    mov     $3, %ecx
    rep movsb
    mov     $0xabababab, %eax
    mov     $2, %ecx
    rep stosl
    mov     $MMIO + 0xa0, %esi
    pop     %edi
    mov     $2, %ecx
    rep movsl
    mov     %esi, %eax
    record32 %eax

    mov     $message, %esi
    mov     $4, %ecx
    mov     $0xe9, %edx
    rep outsb
    finish

message:
    .ascii  "bus!"
