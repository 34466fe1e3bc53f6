// SYSCALL, SYSRET, SWAPGS, an interrupt from ring 3 to its TSS stack (SDM vol. 3A §5.8.8, §6.14.4).
#define COMPLETE
#include "guest.inc"
#include "exceptions64.inc"
    .code64
    .globl _start
_start:
    call    install_handlers
    load_task_state
    mov     $0xc0000081, %ecx       // STAR: SYSCALL to 0x18/0x20, SYSRET from 0x20|3: 0x28 data, 0x30 code
    xor     %eax, %eax
    mov     $0x00200018, %edx
    wrmsr
    mov     $0xc0000082, %ecx       // LSTAR
    mov     $on_syscall, %eax
    xor     %edx, %edx
    wrmsr
    mov     $0xc0000084, %ecx       // SFMASK: clears IF and DF
    mov     $0x600, %eax
    wrmsr
    mov     $0xc0000080, %ecx       // EFER.SCE
    rdmsr
    or      $1, %eax
    wrmsr
    mov     $0xc0000102, %ecx       // KERNEL_GS_BASE
    mov     $0x6e00, %eax
    xor     %edx, %edx
    wrmsr
    orq     $4, 0x2000              // user may use the first GiB
    orq     $4, 0x3000
    orq     $4, 0x4000
    mov     %cr3, %rax
    mov     %rax, %cr3
    mov     $RESULTS, %rdi
    mov     $user, %ecx
    mov     $0x602, %r11d           // IF and DF
    mov     $0x7400, %rsp
    sysretq
user:
    cld
    mov     %cs, %eax
    record64 %rax
    mov     %ss, %eax
    record64 %rax
    mov     $0x12345, %eax
    std
    syscall
    pushfq
    pop     %rax
    cld
    record64 %rax                   // DF is back
    record64 %rcx
    record64 %r11
    expect  int $0x30
    expect  hlt
    expect  swapgs
    mov     $0x40000000, %rbx
    expect  mov (%rbx), %al         // user, not present: code 4
    expect  mov 0x600000, %al       // user, a supervisor's page: code 5
    expect  movb $1, 0x600000       // code 7
    mov     $1, %eax
    syscall

on_syscall:
    swapgs
    mov     %rax, %gs:8             // 0x6e08
    swapgs
    pushfq                          // on the user's stack: SYSCALL leaves RSP alone
    pop     0x6e10
    mov     %cs, 0x6e18
    mov     %ss, 0x6e1a
    cmp     $1, %eax
    je      1f
    sysretq
1:  mov     %rcx, 0x6e20
    finish
