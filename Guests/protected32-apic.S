// The local APIC: timer in both modes, IPIs to itself, priorities, NMI (SDM vol. 3A §11).
#include "guest.inc"
#include "interrupts32.inc"
    .set    APIC, 0xfee00000
    .code32
    .globl _start
_start:
    lidt    interrupt_table_pointer
    interrupt_gate 0x02, on_nmi
    interrupt_gate 0x40, on_timer
    interrupt_gate 0x41, on_low
    interrupt_gate 0x52, on_high
    mov     $RESULTS + 0x40, %edi
    mov     APIC + 0x20, %eax               // ID
    mov     %eax, RESULTS
    movzbl  APIC + 0x30, %eax               // version
    mov     %eax, RESULTS + 4
    mov     APIC + 0xf0, %eax               // reset: software-disabled, vector 0xff
    mov     %eax, RESULTS + 8
    movl    $0x1ff, APIC + 0xf0
    mov     APIC + 0xe0, %eax
    mov     %eax, RESULTS + 12              // DFR: flat
    movl    $0x01000000, APIC + 0xd0
    mov     APIC + 0xd0, %eax
    mov     %eax, RESULTS + 16

    movl    $0x0b, APIC + 0x3e0             // divide by 1
    movl    $0x40, APIC + 0x320             // one-shot
    movl    $2000000, APIC + 0x380
    sti
    hlt
    cli
    mov     APIC + 0x390, %eax              // ran out
    mov     %eax, RESULTS + 20
    movl    $0x20040, APIC + 0x320          // periodic
    movl    $5000000, APIC + 0x380
1:  sti
    hlt
    cli
    cmpl    $4, RESULTS + 24
    jb      1b
    movl    $0x10040, APIC + 0x320          // masked
    movl    $0, APIC + 0x380
    open_window                             // a tick that came meanwhile
    open_window
    movl    $4, RESULTS + 24

    movl    $0x40041, APIC + 0x300          // to itself, twice, and a higher one
    movl    $0x40041, APIC + 0x300
    movl    $0x40052, APIC + 0x300
    mov     APIC + 0x220, %eax              // IRR 0x40–0x5f
    mov     %eax, RESULTS + 28
    open_window
    open_window
    movl    $0x50, APIC + 0x80              // TPR: class 5 must wait
    movl    $0x40052, APIC + 0x300
    open_window
    movb    $0xee, (%edi)
    inc     %edi
    mov     APIC + 0xa0, %eax               // PPR
    mov     %eax, RESULTS + 32
    movl    $0, APIC + 0x80
    open_window
    movl    $0, APIC + 0x310                // to APIC 0, by number
    movl    $0x04041, APIC + 0x300
    open_window
    movl    $0x01000000, APIC + 0x310       // logical destination 1
    movl    $0x04852, APIC + 0x300
    open_window
    movl    $0, APIC + 0x310
    movl    $0x04400, APIC + 0x300          // NMI: not masked by IF
    out     %al, $WINDOW_PORT
    mov     APIC + 0x300, %eax
    mov     %eax, RESULTS + 44
    finish_with_irqchip

on_timer:
    incl    RESULTS + 24
    movl    $0, APIC + 0xb0
    interrupt_return
on_nmi:
    movb    $0x02, (%edi)
    inc     %edi
    interrupt_return
on_low:
    movb    $0x41, (%edi)
    jmp     acknowledge
on_high:
    movb    $0x52, (%edi)
acknowledge:
    inc     %edi
#ifdef COMPLETE
    mov     APIC + 0x120, %eax              // ISR 0x40–0x5f
    or      %eax, RESULTS + 40
#endif
    movl    $0, APIC + 0xb0
    interrupt_return
