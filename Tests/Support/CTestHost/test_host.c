#define _GNU_SOURCE
#include "test_host.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { STACK_SIZE = 65536 };

#define SHARED __attribute__((visibility("hidden")))

// Read and written by the assembly below. One thread at a time (test_host_run).
SHARED test_host_registers *test_host_current;
SHARED uint64_t test_host_saved_rsp;
// A 32-bit offset: not every processor takes a 64-bit one, and the code is below 4 GiB.
SHARED struct {
    uint32_t offset;
    uint16_t selector;
} __attribute__((packed)) test_host_far;
void test_host_enter(int is_32_bit);
void test_host_back(void);

static __thread int is_inside;
static struct sigaction previous[64];
static pthread_mutex_t user = PTHREAD_MUTEX_INITIALIZER;

// Loads everything and leaves by a far jump; comes back at test_host_back with rsp restored by the signal handler.
__asm__(
    ".text\n"
    ".globl test_host_enter\n"
    ".type test_host_enter, @function\n"
    "test_host_enter:\n"
    "  pushq %rbx\n  pushq %rbp\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  subq $8, %rsp\n"
    "  movq %rsp, test_host_saved_rsp(%rip)\n"
    "  testl %edi, %edi\n"
    "  jz 1f\n"
    "  movl $0x2b, %eax\n  movl %eax, %ds\n  movl %eax, %es\n"
    "1: movq test_host_current(%rip), %rax\n"
    "  movq 8(%rax), %rcx\n  movq 16(%rax), %rdx\n  movq 24(%rax), %rbx\n"
    "  movq 40(%rax), %rbp\n  movq 48(%rax), %rsi\n  movq 56(%rax), %rdi\n"
    "  movq 64(%rax), %r8\n  movq 72(%rax), %r9\n  movq 80(%rax), %r10\n  movq 88(%rax), %r11\n"
    "  movq 96(%rax), %r12\n  movq 104(%rax), %r13\n  movq 112(%rax), %r14\n  movq 120(%rax), %r15\n"
    "  pushq 136(%rax)\n"
    "  popfq\n"
    "  movq 32(%rax), %rsp\n"
    "  movq 0(%rax), %rax\n"
    "  ljmpl *test_host_far(%rip)\n"
    ".globl test_host_back\n"
    "test_host_back:\n"
    "  cld\n"
    "  xorl %eax, %eax\n  movl %eax, %ds\n  movl %eax, %es\n"
    "  addq $8, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbp\n  popq %rbx\n"
    "  ret\n"
    ".size test_host_enter, .-test_host_enter\n");

static const int signals[] = {SIGTRAP, SIGFPE, SIGILL, SIGSEGV, SIGBUS};

static void handle(int number, siginfo_t *information, void *raw) {
    ucontext_t *context = raw;
    greg_t *g = context->uc_mcontext.gregs;
    if (!is_inside) {
        // Not ours: what was there before gets it, on the instruction's second try.
        sigaction(number, &previous[number], NULL);
        return;
    }
    (void)information;
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    test_host_registers *registers = test_host_current;
    for (int index = 0; index < 16; index++) registers->gpr[index] = (uint64_t)g[order[index]];
    registers->rip = (uint64_t)g[REG_RIP];
    registers->rflags = (uint64_t)g[REG_EFL];
    registers->vector = (uint64_t)g[REG_TRAPNO];
    registers->error = (uint64_t)g[REG_ERR];
    registers->cr2 = (uint64_t)g[REG_CR2];
    g[REG_RIP] = (greg_t)(uintptr_t)test_host_back;
    g[REG_RSP] = (greg_t)test_host_saved_rsp;
    g[REG_EFL] = 0x202;
    g[REG_CSGSFS] = (g[REG_CSGSFS] & ~0xFFFFLL) | 0x33;
}

void test_host_begin(void) {
    pthread_mutex_lock(&user);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (unsigned index = 0; index < sizeof signals / sizeof *signals; index++) {
        sigaction(signals[index], &action, &previous[signals[index]]);
    }
}

void test_host_end(void) {
    for (unsigned index = 0; index < sizeof signals / sizeof *signals; index++) {
        sigaction(signals[index], &previous[signals[index]], NULL);
    }
    pthread_mutex_unlock(&user);
}

void test_host_run(test_host_registers *registers, int is_32_bit) {
    static __thread void *signal_stack;
    if (!signal_stack) {
        signal_stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    stack_t mine = {.ss_sp = signal_stack, .ss_size = STACK_SIZE}, old;
    sigaltstack(&mine, &old);
    test_host_current = registers;
    test_host_far.offset = (uint32_t)registers->rip;
    test_host_far.selector = is_32_bit ? 0x23 : 0x33;
    is_inside = 1;
    test_host_enter(is_32_bit);
    is_inside = 0;
    sigaltstack(&old, NULL);
}
