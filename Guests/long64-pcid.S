// Process-context identifiers: the faults of CR3, CR4 and INVPCID, and that each way of forgetting shows the tables as
// they are (SDM vol. 3A §4.10; vol. 2, INVPCID, MOV). What may be stale is not looked at.
#define COMPLETE
#include "guest.inc"
#include "exceptions64.inc"
    .set    SPACE_A, 0x20000        // top, pointers, directory, table: a page each
    .set    SPACE_B, 0x24000
    .set    PAGE, 0x40000           // differs: 0x31000 in A, 0x32000 in B
    .set    GLOBAL_PAGE, 0x41000    // 0x35000, global, in both
    .set    CODE_PAGE, 0x42000      // 0x36000 in A, 0x37000 in B
    .set    PCIDE, 0x20000
    .set    PGE, 0x80
    .set    descriptor, 0x5000

// The table entry of PAGE (+ offset) of a space, and entry into a space: with `keep` nothing is flushed.
.macro map space, offset, value
    movq    $\value, \space + 0x3000 + 8 * ((PAGE + \offset) >> 12)
.endm
.macro enter space, identifier
    mov     $\space + \identifier, %eax
    mov     %rax, %cr3
.endm
.macro keep space, identifier
    mov     $\space + \identifier, %eax
    bts     $63, %rax
    mov     %rax, %cr3
.endm
.macro look address
    mov     \address, %eax
    record64 %rax
.endm
.macro invalidate type, identifier, address
    movq    $\identifier, descriptor
    movq    $\address, descriptor + 8
    mov     $\type, %ecx
    invpcid descriptor, %rcx
.endm

    .code64
    .globl _start
_start:
    call    install_handlers
    mov     $SPACE_A, %edi
    mov     $0x1000, %ecx
    xor     %eax, %eax
    rep stosq
    mov     $SPACE_A, %edi
    call    build
    mov     $SPACE_B, %edi
    call    build
    map     SPACE_A, 0, 0x31003
    map     SPACE_B, 0, 0x32003
    map     SPACE_A, 0x1000, 0x35103
    map     SPACE_B, 0x1000, 0x35103
    map     SPACE_A, 0x2000, 0x36003
    map     SPACE_B, 0x2000, 0x37003
    movl    $0xa, 0x31000
    movl    $0xb, 0x32000
    movl    $0xc, 0x33000
    movl    $0xd, 0x34000
    movl    $0xe, 0x35000
    movl    $0x36b8, 0x36000        // MOV EAX, 0x36; RET
    movw    $0xc300, 0x36004
    movl    $0x37b8, 0x37000
    movw    $0xc300, 0x37004
    mov     $RESULTS, %rdi

    // Faults without PCIDE: bit 63 of CR3; identifiers in CR3 when it is set; INVPCID with one.
    mov     %cr3, %rbx
    bts     $63, %rbx
    expect  mov %rbx, %cr3
    mov     $0x2018, %eax
    mov     %rax, %cr3
    mov     %cr4, %rbx
    or      $PCIDE + PGE, %ebx
    expect  mov %rbx, %cr4
    enter   0x2000, 0
    movq    $1, descriptor
    movq    $0, descriptor + 8
    xor     %ecx, %ecx
    expect  invpcid descriptor, %rcx
    mov     $1, %ecx
    expect  invpcid descriptor, %rcx
    mov     $3, %ecx
    invpcid descriptor, %rcx        // all of them need none
    mov     %rbx, %cr4
    mov     %cr4, %rax
    record64 %rax

    // Two spaces do not see each other's pages, whether they are entered with a flush or without.
    enter   SPACE_A, 1
    look    PAGE
    enter   SPACE_B, 2
    look    PAGE
    keep    SPACE_A, 1
    mov     %cr3, %rax              // bit 63 is not kept
    record64 %rax
    look    PAGE
    keep    SPACE_B, 2
    look    PAGE

    // From B: what A must see after each kind of INVPCID, and after a load of CR3 that flushes.
    map     SPACE_A, 0, 0x33003
    invalidate 0, 1, PAGE
    keep    SPACE_A, 1
    look    PAGE
    keep    SPACE_B, 2
    map     SPACE_A, 0, 0x34003
    invalidate 1, 1, 0
    keep    SPACE_A, 1
    look    PAGE
    keep    SPACE_B, 2
    map     SPACE_A, 0, 0x31003
    invalidate 2, 0, 0
    keep    SPACE_A, 1
    look    PAGE
    keep    SPACE_B, 2
    map     SPACE_A, 0, 0x33003
    invalidate 3, 0, 0
    keep    SPACE_A, 1
    look    PAGE
    keep    SPACE_B, 2
    map     SPACE_A, 0, 0x34003
    enter   SPACE_A, 1
    look    PAGE

    // A global page: INVLPG in one space is for all.
    look    GLOBAL_PAGE
    keep    SPACE_B, 2
    look    GLOBAL_PAGE
    map     SPACE_A, 0x1000, 0x31103
    map     SPACE_B, 0x1000, 0x31103
    invlpg  GLOBAL_PAGE
    look    GLOBAL_PAGE
    keep    SPACE_A, 1
    look    GLOBAL_PAGE

    // Code at one address.
    mov     $3, %ebp
1:  keep    SPACE_A, 1
    mov     $CODE_PAGE, %ebx
    call    *%rbx
    record64 %rax
    keep    SPACE_B, 2
    call    *%rbx
    record64 %rax
    dec     %ebp
    jnz     1b

    // Faults of INVPCID with PCIDE: type, reserved bits, an address that is not canonical; the descriptor's page.
    mov     $4, %ecx
    expect  invpcid descriptor, %rcx
    movq    $0x1000, descriptor
    mov     $2, %ecx
    expect  invpcid descriptor, %rcx
    movq    $0xfff, descriptor
    invpcid descriptor, %rcx
    mov     $1, %eax
    shl     $47, %rax
    mov     %rax, descriptor + 8
    xor     %ecx, %ecx
    expect  invpcid descriptor, %rcx
    mov     $1, %ecx
    invpcid descriptor, %rcx        // the address means nothing here
    expect  invpcid 0x7f000, %rcx
    // Bit 62 of CR3 stays reserved.
    mov     $SPACE_A + 1, %eax
    bts     $62, %rax
    expect  mov %rax, %cr3

    // Off again: the identifier goes first or not, the tables are those of CR3.
    keep    SPACE_A, 1
    mov     %cr4, %rax
    and     $~PCIDE, %eax
    mov     %rax, %cr4
    look    PAGE
    mov     $0x2000, %eax
    mov     %rax, %cr3
    look    0x31000
    finish

// Tables at %edi: the first 256 KiB are mapped to themselves.
build:
    lea     0x1003(%rdi), %eax
    mov     %rax, (%rdi)
    lea     0x2003(%rdi), %eax
    mov     %rax, 0x1000(%rdi)
    lea     0x3003(%rdi), %eax
    mov     %rax, 0x2000(%rdi)
    mov     $3, %eax
    xor     %ecx, %ecx
1:  mov     %rax, 0x3000(%rdi, %rcx, 8)
    add     $0x1000, %eax
    inc     %ecx
    cmp     $64, %ecx
    jne     1b
    ret
