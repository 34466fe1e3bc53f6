// Segment limits: expand-up, expand-down, granularity, stack (SDM vol. 3A §5.3), and the instructions that ask.
#include "guest.inc"
#include "exceptions32.inc"
    .code32
    .globl _start
_start:
    lgdt    gdt_pointer
    call    install_handlers
    mov     $RESULTS, %edi
    mov     $0x18, %eax                     // base 0x9000, limit 0xfff, byte granular
    mov     %eax, %fs
    movl    $0x12345678, %fs:0xffc
    mov     0x9ffc, %eax
    record32 %eax
    expect  mov %fs:0xffd, %eax             // the last byte is outside
    expect  mov %fs:0x1000, %al
    movb    $1, %fs:0xfff
    mov     $0x20, %eax                     // expand-down, limit 0xfff: valid above
    mov     %eax, %gs
    expect  mov %gs:0xfff, %al
    movl    $0x9abcdef0, %gs:0x1000
    mov     0xa000, %eax
    record32 %eax
    mov     $0x28, %eax                     // read-only
    mov     %eax, %gs
    mov     %gs:0, %eax
    record32 %eax
    expect  movl $0, %gs:0
    mov     $0x30, %eax                     // not present
    expect  mov %eax, %gs
    expect  mov %eax, %ss                   // the same for SS is #SS
    xor     %eax, %eax
    mov     %eax, %gs
    expect  mov %gs:0, %eax                 // through a null selector
    mov     $0x18, %eax                     // a stack with a limit
    mov     %esp, %ebp
    mov     %eax, %ss
    mov     $0x1000, %esp
    push    $0x55aa55aa
    mov     $DATA32, %ebx
    pop     %ecx
    mov     %ebx, %ss
    mov     %ebp, %esp
    record32 %ecx
#ifdef COMPLETE
    mov     $0x18, %eax
    lsl     %eax, %ecx
    record32 %ecx
    lar     %eax, %ecx
    record32 %ecx
    mov     $0x28, %eax
    verr    %ax
    setz    %cl
    verw    %ax
    setz    %ch
    movzwl  %cx, %ecx
    record32 %ecx
#endif
    sgdt    RESULTS + 0xf00
    sidt    RESULTS + 0xf08
    str     %eax
    record32 %eax
    sldt    %eax
    record32 %eax
    finish

    .balign 8
gdt:
    .quad   0
    .quad   0x00cf9b000000ffff              // 0x08 code
    .quad   0x00cf93000000ffff              // 0x10 data
    .quad   0x0040930090000fff              // 0x18 base 0x9000, limit 0xfff
    .quad   0x0040970090000fff              // 0x20 the same, expand-down
    .quad   0x0040910090000fff              // 0x28 the same, read-only
    .quad   0x0040130090000fff              // 0x30 not present
gdt_pointer:
    .word   0x37
    .long   gdt
