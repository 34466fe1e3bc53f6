// The PIC pair and the PIT's channel 0: three ticks, lines from outside, priorities (8259A, 8254 data sheets).
#include "guest.inc"
#include "interrupts32.inc"
    .code32
    .globl _start
_start:
    lidt    interrupt_table_pointer
    interrupt_gate 0x20, on_tick
    interrupt_gate 0x23, on_line3
    interrupt_gate 0x25, on_line5
    interrupt_gate 0x2a, on_line10
    initialize_pics
    mov     $RESULTS + 16, %edi
    mov     $0xfe, %al                      // IRQ 0 only
    out     %al, $0x21
    mov     $0x34, %al                      // channel 0, both bytes, mode 2
    out     %al, $0x43
    mov     $11932 & 0xff, %al              // 100 Hz
    out     %al, $0x40
    mov     $11932 >> 8, %al
    out     %al, $0x40
1:  sti
    hlt
    cli
    cmpl    $3, RESULTS
    jb      1b
    mov     $0x30, %al                      // mode 0 with the longest count: no tick for 55 ms
    out     %al, $0x43
    mov     $0xff, %al
    out     %al, $0x40
    out     %al, $0x40
    mov     $0xff, %al
    out     %al, $0x21
    initialize_pics                         // forgets a tick that came meanwhile

    mov     $0xd3, %al                      // lines 2 (cascade), 3, 5
    out     %al, $0x21
    mov     $0xfb, %al                      // line 10
    out     %al, $0xa1
    action  RAISE + 5
    mov     $0x0a, %al                      // OCW3: read IRR
    out     %al, $0x20
    in      $0x20, %al
    and     $0xfe, %al                      // not the PIT's
    mov     %al, RESULTS + 4
    action  RAISE + 3                       // of higher priority
    open_window
    open_window
    action  LOWER + 5
    action  LOWER + 3
    action  RAISE + 10
    open_window
    action  LOWER + 10
    action  RAISE + 7                       // masked
    open_window
    action  LOWER + 7
    action  RAISE + 5                       // an edge that is withdrawn: spurious, or nothing
    in      $0x21, %al
    mov     %al, RESULTS + 5
    mov     $0x0a, %al
    out     %al, $0x20
    in      $0x20, %al
    and     $0xfe, %al
    mov     %al, RESULTS + 6
    open_window
    action  LOWER + 5
    movl    $0xd0e, (%edi)
    finish_with_irqchip

on_tick:
    push    %eax
    incl    RESULTS
    mov     $0x20, %al
    out     %al, $0x20
    pop     %eax
    interrupt_return
on_line3:
    movb    $0x03, (%edi)
    jmp     acknowledge
on_line5:
    movb    $0x05, (%edi)
    jmp     acknowledge
on_line10:
    movb    $0x0a, (%edi)
    mov     $0x62, %al                      // specific EOI of the cascade, after the slave's
    out     %al, $0x20
    mov     $0x20, %al
    out     %al, $0xa0
    inc     %edi
    interrupt_return
acknowledge:
    mov     $0x0b, %al                      // OCW3: read ISR
    out     %al, $0x20
    in      $0x20, %al
    mov     %al, 0x10(%edi)
    mov     $0x20, %al
    out     %al, $0x20
    inc     %edi
    interrupt_return
