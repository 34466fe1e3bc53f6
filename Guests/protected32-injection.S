// Without an irqchip: the interrupt window opens with STI, after its shadow, and KVM_INTERRUPT delivers.
#define COMPLETE
#include "guest.inc"
#include "interrupts32.inc"
    .code32
    .globl _start
_start:
    lidt    interrupt_table_pointer
    interrupt_gate 0x40, on_interrupt
    mov     $RESULTS, %edi
    xor     %ebx, %ebx
    action  INJECT
    mov     $1, %ebx                        // still closed
    open_window
    mov     $2, %ebx
    record32 %ebx
    action  INJECT
    out     %al, $WINDOW_PORT               // closed: nothing happens
    mov     $3, %ebx
    open_window
    finish

on_interrupt:
    record32 %ebx
    mov     (%esp), %eax
    record32 %eax
    interrupt_return
