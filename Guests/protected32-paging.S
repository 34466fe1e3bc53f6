// 32-bit paging: faults and their codes, write protection, INVLPG, global remapping (SDM vol. 3A §4.3, §4.7).
#define COMPLETE
#include "guest.inc"
#include "exceptions32.inc"
    .set    DIRECTORY, 0x20000
    .set    TABLE, 0x21000
    .code32
    .globl _start
_start:
    call    install_handlers
    mov     $DIRECTORY, %edi                // clear both
    mov     $2048, %ecx
    xor     %eax, %eax
    rep stosl
    movl    $TABLE + 7, DIRECTORY
    mov     $TABLE, %edi                    // identity map of the first 256 KiB
    mov     $3, %eax
    mov     $64, %ecx
1:  stosl
    add     $0x1000, %eax
    loop    1b
    movl    $0x30001, TABLE + 4 * 0x30      // read-only
    movl    $0x31003, TABLE + 4 * 0x40      // 0x40000 is a second name of 0x31000
    movl    $0x1badcafe, 0x31000
    movl    $0x22222222, 0x32000
    mov     $RESULTS, %edi
    mov     $DIRECTORY, %eax
    mov     %eax, %cr3
    mov     %cr0, %eax
    or      $0x80000000, %eax
    mov     %eax, %cr0
    jmp     1f
1:  mov     0x40000, %eax
    record32 %eax
    expect  mov 0x50000, %eax               // not present, read: code 0
    expect  movl $1, 0x50004                // not present, write: code 2
    expect  mov 0x400000, %eax              // no table
    movl    $0x77, 0x30000                  // read-only, but WP is off
    mov     %cr0, %eax
    or      $0x10000, %eax
    mov     %eax, %cr0
    expect  movl $0x88, 0x30000             // protection, write: code 3
    mov     0x30000, %eax
    record32 %eax
    movl    $0x32003, TABLE + 4 * 0x40
    invlpg  0x40000
    mov     0x40000, %eax
    record32 %eax
    movl    $0x31003, TABLE + 4 * 0x40
    mov     %cr3, %eax
    mov     %eax, %cr3
    mov     0x40000, %eax
    record32 %eax
    expect  ljmp $CODE32, $0x50000          // a fetch from nowhere
    mov     $0x3fffe, %eax                  // a read across a page that is there and one that is not
    movl    $0, TABLE + 4 * 0x40
    invlpg  0x40000
    expect  mov (%eax), %eax
    mov     $0x55, %ecx
    mov     $0x3ffff, %ebx
    expect  mov %ecx, (%ebx)                // no byte of it may be written
    movzbl  0x3ffff, %eax
    record32 %eax
    mov     %cr0, %eax                      // paging off again
    and     $0x7fffffff, %eax
    mov     %eax, %cr0
    jmp     1f
1:  mov     0x31000, %eax
    record32 %eax
    mov     TABLE + 4 * 0x32, %eax          // never touched under this name: not accessed
    record32 %eax
    xor     %eax, %eax
    finish
