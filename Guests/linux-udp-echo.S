// A Linux program: sends every datagram that comes to UDP port 7 back to where it came from (RFC 862).
        .globl _start
        .text
_start:
        mov     $41, %eax               // socket(AF_INET, SOCK_DGRAM, 0)
        mov     $2, %edi
        mov     $2, %esi
        xor     %edx, %edx
        syscall
        mov     %eax, %ebx
        mov     $49, %eax               // bind(fd, 0.0.0.0:7, 16)
        mov     %ebx, %edi
        lea     address(%rip), %rsi
        mov     $16, %edx
        syscall
        test    %eax, %eax
        js      failed
again:  movl    $16, length(%rip)
        mov     $45, %eax               // recvfrom(fd, data, 65536, 0, address, length)
        mov     %ebx, %edi
        lea     data(%rip), %rsi
        mov     $65536, %edx
        xor     %r10d, %r10d
        lea     address(%rip), %r8
        lea     length(%rip), %r9
        syscall
        test    %rax, %rax
        js      again
        mov     %eax, %edx
        mov     $44, %eax               // sendto(fd, data, count, 0, address, 16)
        mov     %ebx, %edi
        lea     data(%rip), %rsi
        xor     %r10d, %r10d
        lea     address(%rip), %r8
        mov     $16, %r9d
        syscall
        jmp     again
failed: mov     $60, %eax               // exit(1)
        mov     $1, %edi
        syscall

        .data
address:
        .short  2
        .byte   0, 7
        .fill   12
length: .long   16
        .bss
        .lcomm  data, 65536
