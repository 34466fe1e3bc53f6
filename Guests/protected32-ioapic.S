// The I/O APIC and messages: edge and level, remote IRR, masking, MSI (82093AA data sheet; SDM vol. 3A §11.11).
#include "guest.inc"
#include "interrupts32.inc"
    .set    APIC, 0xfee00000
    .set    IOAPIC, 0xfec00000
    .code32

.macro select register
    movl    $\register, IOAPIC
.endm

// Redirection entry of a pin: the low word, to APIC 0.
.macro route pin, low
    select  0x11 + 2 * \pin
    movl    $0, IOAPIC + 0x10
    select  0x10 + 2 * \pin
    movl    $\low, IOAPIC + 0x10
.endm

    .globl _start
_start:
    lidt    interrupt_table_pointer
    interrupt_gate 0x44, on_level
    interrupt_gate 0x45, on_edge
    interrupt_gate 0x46, on_message
    interrupt_gate 0x47, on_tick
    initialize_pics
    mov     $RESULTS + 0x40, %edi
    movl    $0x1ff, APIC + 0xf0
    select  1
    mov     IOAPIC + 0x10, %eax             // version 0x11 or 0x20, 24 entries
    and     $0xff0000, %eax
    mov     %eax, RESULTS
    select  0x10 + 2 * 5
    mov     IOAPIC + 0x10, %eax             // reset: masked
    mov     %eax, RESULTS + 4

    route   5, 0x45
    action  RAISE + 5
    open_window
    open_window                             // once only
    action  RAISE + 5                       // no edge
    open_window
    action  LOWER + 5
    action  RAISE + 5
    open_window
    action  LOWER + 5
    route   5, 0x10045                      // masked: an edge is kept or lost
    action  RAISE + 5
    action  LOWER + 5
    open_window

    action  SEND_MESSAGE
    open_window
#ifdef COMPLETE
    route   6, 0x8044                       // level
    mov     $2, %ebx                        // lowered by the second time
    action  RAISE + 6
    open_window
    open_window
    open_window
    select  0x10 + 2 * 6
    mov     IOAPIC + 0x10, %eax
    mov     %eax, RESULTS + 12              // remote IRR is clear again
    route   6, 0x18044
    action  RAISE + 6
    open_window
    route   6, 0x8044                       // unmasked while high
    mov     $1, %ebx
    open_window

    route   2, 0x47                         // the PIT is GSI 0 on pin 2
    mov     $0x34, %al
    out     %al, $0x43
    mov     $11932 & 0xff, %al
    out     %al, $0x40
    mov     $11932 >> 8, %al
    out     %al, $0x40
1:  sti
    hlt
    cli
    cmpl    $3, RESULTS + 16
    jb      1b
    route   2, 0x10047
    mov     $0x30, %al                      // mode 0 with the longest count: no tick for 55 ms
    out     %al, $0x43
    mov     $0xff, %al
    out     %al, $0x40
    out     %al, $0x40
    open_window
    open_window
    movl    $3, RESULTS + 16
#endif
    finish_with_irqchip

on_edge:
    movb    $0x45, (%edi)
    inc     %edi
    movl    $0, APIC + 0xb0
    interrupt_return
on_message:
    movb    $0x46, (%edi)
    inc     %edi
    movl    $0, APIC + 0xb0
    interrupt_return
on_tick:
    incl    RESULTS + 16
    movl    $0, APIC + 0xb0
    interrupt_return
on_level:
    movb    $0x44, (%edi)
    inc     %edi
    select  0x10 + 2 * 6
    mov     IOAPIC + 0x10, %eax             // remote IRR is set
    mov     %eax, RESULTS + 8
    dec     %ebx
    jnz     1f
    action  LOWER + 6
1:  movl    $0, APIC + 0xb0
    interrupt_return
