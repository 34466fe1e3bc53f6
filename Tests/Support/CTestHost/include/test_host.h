// Runs guest code on the host's own processor: all registers are loaded, control goes to the code, and the exception that
// ends it (INT3 at the latest) brings all registers back. For tests only.
#ifndef MARTLET_TEST_HOST_H
#define MARTLET_TEST_HOST_H

#include <stdint.h>

typedef struct test_host_registers {
    uint64_t gpr[16]; // by encoding
    uint64_t rip;
    uint64_t rflags;
    uint64_t vector; // out: the exception
    uint64_t error;
    uint64_t cr2;
} test_host_registers;

// Takes over the signals of exceptions, and gives them back. A second caller waits; both must be of one thread.
void test_host_begin(void);
void test_host_end(void);

// Executes from `rip`, in 64-bit mode or as 32-bit code in compatibility mode, until an exception. Only between
// begin and end.
void test_host_run(test_host_registers *_Nonnull registers, int is_32_bit);

#endif
