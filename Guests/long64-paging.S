// 4-level paging with 4 KiB pages: faults and their codes, write protection, INVLPG, accesses across pages, accessed and
// dirty bits, NX (SDM vol. 3A §4.5, §4.7, §4.8).
#include "guest.inc"
#include "exceptions64.inc"
    .set    PDPT, 0x21000
    .set    PD, 0x22000
    .set    TABLE, 0x23000
    .code64
    .globl _start
_start:
    call    install_handlers
    mov     $0x20000, %edi                  // clear all four
    mov     $2048, %ecx
    xor     %eax, %eax
    rep stosq
    movq    $PDPT + 7, 0x20000
    movq    $PD + 7, PDPT
    movq    $TABLE + 7, PD
    mov     $TABLE, %edi                    // identity map of the first 256 KiB
    mov     $3, %eax
    mov     $64, %ecx
1:  stosq
    add     $0x1000, %eax
    loop    1b
    movq    $0x30001, TABLE + 8 * 0x30      // read-only
    movq    $0x31003, TABLE + 8 * 0x40      // 0x40000 is a second name of 0x31000
    movl    $0x1badcafe, 0x31000
    movl    $0x22222222, 0x32000
    mov     $RESULTS, %rdi
    mov     $0x20000, %eax
    mov     %rax, %cr3
    mov     0x40000, %eax
    record64 %rax
    expect  mov 0x50000, %eax               // not present, read: code 0
    expect  movl $1, 0x50004                // not present, write: code 2
    expect  mov 0x400000, %eax              // no table
    movl    $0x77, 0x30000                  // read-only, but WP is off
    mov     %cr0, %rax
    or      $0x10000, %eax
    mov     %rax, %cr0
    expect  movl $0x88, 0x30000             // protection, write: code 3
    mov     0x30000, %eax
    record64 %rax
    movl    $0x32003, TABLE + 8 * 0x40
    invlpg  0x40000
    mov     0x40000, %eax
    record64 %rax
    movl    $0x31003, TABLE + 8 * 0x40
    mov     %cr3, %rax
    mov     %rax, %cr3
    mov     0x40000, %eax
    record64 %rax
    mov     $0x3fffe, %ebx                  // a read across a page that is there and one that is not
    movq    $0, TABLE + 8 * 0x40
    invlpg  0x40000
    expect  mov (%rbx), %eax
#ifdef COMPLETE
    mov     $0x55, %ecx
    inc     %ebx
    expect  mov %rcx, (%rbx)                // no byte of it may be written
    movzbl  0x3ffff, %eax
    record64 %rax
#endif
    movb    $1, 0x33000                     // dirty
    mov     0x34000, %al                    // only accessed
    mov     TABLE + 8 * 0x33, %rax
    record64 %rax
    mov     TABLE + 8 * 0x34, %rax
    record64 %rax
    mov     TABLE + 8 * 0x35, %rax          // neither
    record64 %rax
    mov     $0xc0000080, %ecx               // EFER.NXE
    rdmsr
    or      $0x800, %eax
    wrmsr
    movl    $0x80000000, TABLE + 8 * 0x36 + 4
    movb    $0xc3, 0x36000                  // RET
    movb    $0xc3, 0x37000
    mov     %cr3, %rax
    mov     %rax, %cr3
    mov     $0x37000, %ebx
    call    *%rbx
    mov     $0x36000, %ebx
    expect  jmp *%rbx                       // fetch from a page that forbids it: code 0x11
    movl    $0x80000000, TABLE + 8 * 0x38 + 4
    orl     $0x80000, TABLE + 8 * 0x38 + 4  // bit 51, reserved with 40 address bits: code 9
    invlpg  0x38000
    expect  mov 0x38000, %al
    mov     $0x2000, %eax
    mov     %rax, %cr3
    mov     0x31000, %eax
    record64 %rax
    finish
