// The least: one line, status 1.
#include "multiboot.inc"
_start:
    mov     $0x80000, %esp
    print   hello
    exit_with 0
hello:
    .asciz  "Hello from Multiboot\n"
