// Checks the state that a boot loader must leave (§3.2) and prints what the information structure says (§3.3): the
// command line, lower and upper memory, the memory map's usable bytes, and the modules with their contents. Status 1;
// or 3, 5, 7 … for the first check that failed.
#include "multiboot.inc"

.macro require condition, value
    j\condition 9f
    exit_with \value
9:
.endm

_start:
    cmp     $BOOTLOADER_MAGIC, %eax
    require e, 1
    mov     %cr0, %eax                  // protected mode, paging off
    and     $0x80000001, %eax
    cmp     $1, %eax
    require e, 2
    cmp     $0x3000, %ebx               // the information is clear of the first 12 KiB
    require ae, 3
    mov     $end, %eax                  // and of the image
    cmp     %eax, %ebx
    jae     1f
    mov     $0x100000, %eax
    cmp     %eax, %ebx
    require b, 4
1:  mov     %ds, %eax                   // the data segments are usable
    mov     %ss, %ecx
    mov     $0x80000, %esp
    pushf
    pop     %eax
    test    $0x20200, %eax              // IF and VM are clear
    require z, 5
    mov     (%ebx), %eax
    mov     %eax, flags
    test    $1, %eax
    require nz, 6
    test    $0x40, %eax
    require nz, 7

    print   command_line
    testl   $4, flags
    jz      1f
    mov     16(%ebx), %esi
    call    print_string
1:  print   lower
    mov     4(%ebx), %eax
    call    print_number
    print   upper
    mov     8(%ebx), %eax
    call    print_number

    print   usable                      // the map: size, base, length, type (§3.3)
    mov     48(%ebx), %esi
    mov     44(%ebx), %ecx
    add     %esi, %ecx
    xor     %eax, %eax
2:  cmp     %ecx, %esi
    jae     3f
    cmpl    $1, 20(%esi)
    jne     1f
    add     12(%esi), %eax
1:  add     (%esi), %esi
    add     $4, %esi
    jmp     2b
3:  call    print_number

    testl   $8, flags
    jz      done
    mov     20(%ebx), %eax
    mov     %eax, remaining
    mov     24(%ebx), %eax
    mov     %eax, current
next:
    cmpl    $0, remaining
    je      done
    print   module
    mov     current, %esi
    mov     8(%esi), %esi
    test    %esi, %esi
    jz      1f
    call    print_string
1:  print   separator
    mov     current, %eax
    mov     (%eax), %esi                // as text, to its end
    mov     4(%eax), %edi
1:  cmp     %edi, %esi
    jae     2f
    lodsb
    mov     %al, digit
    push    %esi
    mov     $digit, %esi
    call    print_string
    pop     %esi
    jmp     1b
2:  decl    remaining
    addl    $16, current
    jmp     next
done:
    print   newline
    exit_with 0

command_line:
    .asciz  "command line: "
lower:
    .asciz  "\nlower KiB: "
upper:
    .asciz  "\nupper KiB: "
usable:
    .asciz  "\nusable bytes: "
module:
    .asciz  "\nmodule: "
separator:
    .asciz  ": "
newline:
    .asciz  "\n"
    .balign 4
flags:
    .long   0
remaining:
    .long   0
current:
    .long   0
end:
