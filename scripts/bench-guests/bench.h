// The bench guest: one static program with one row for each kind of work, run natively and as the first process of a
// guest. See bench.c for how a row is measured and what it prints.
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/// A unit of work is always the same work: it starts from the same state and returns the same checksum, however often
/// it runs. It is short, about a tenth of a millisecond natively, so that an engine a hundred times slower still fits
/// a few of them into its time.
struct row {
    const char *name;
    /// What `operations` counts: a unit of work is so many of them, and the row's value is nanoseconds for each.
    const char *operation;
    double operations;
    uint64_t (*unit)(void);
    /// Around all units of a row; they may be null. `prepare` returns false where the processor lacks what it needs.
    bool (*prepare)(void);
    void (*finish)(void);
    /// Two processes that wait for each other: on one processor, as in the guest, whatever the machine has.
    bool on_one_processor;
};

extern const struct row compute_rows[], mixed_rows[], memory_rows[], vector_rows[], kernel_rows[];

/// What `exec` of ourselves gets as its only argument.
#define EXEC_CHILD "--exec-child"
#define EXEC_CHILD_STATUS 7

static inline uint64_t mix(uint64_t checksum, uint64_t value) {
    checksum = (checksum ^ value) * UINT64_C(0x9e3779b97f4a7c15);
    return checksum ^ checksum >> 29;
}

/// The same sequence everywhere (xorshift64*, Vigna 2016).
static inline uint64_t next_random(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(0x2545f4914f6cdd1d);
}

/// Stops the process with one line on standard error.
__attribute__((noreturn)) void give_up(const char *what);

/// Memory of our own that is there (touched), in pages of 4 KiB.
void *allocate(size_t size);

#endif
