// A triple fault: no IDT, and an undefined instruction. The command must say so and where.
#include "multiboot.inc"
_start:
    lidt    no_table
    ud2
no_table:
    .word   0
    .long   0
