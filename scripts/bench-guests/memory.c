// Rows of memory: chains of loads that depend on each other, and the C library's copies and fills.
#include "bench.h"

#include <string.h>

// --- chase-l1, chase-l3: each load's address is the one before's value -----------------------------------------------------

struct link {
    struct link *next;
    uint64_t value;
    uint64_t padding[6];
};

static struct link *chain;
static uint64_t chain_length, chain_rounds;

/// One cycle through all links, each in its own cache line, in an order that no prefetcher guesses (Sattolo's shuffle).
static void make_chain(uint64_t length, uint64_t rounds) {
    uint32_t *order = allocate(length * sizeof *order);
    uint64_t state = 3;
    chain = allocate(length * sizeof *chain);
    chain_length = length, chain_rounds = rounds;
    for (uint64_t i = 0; i < length; i++) order[i] = (uint32_t)i;
    for (uint64_t i = length - 1; i > 0; i--) {
        uint64_t j = next_random(&state) % i;
        uint32_t old = order[i];
        order[i] = order[j], order[j] = old;
    }
    for (uint64_t i = 0; i < length; i++) {
        chain[order[i]].next = &chain[order[(i + 1) % length]];
        chain[i].value = i * 3 + 1;
    }
}

static uint64_t chase_unit(void) {
    uint64_t sum = 0;
    const struct link *link = chain;
    for (uint64_t i = 0; i < chain_length * chain_rounds; i++) {
        sum += link->value;
        link = link->next;
    }
    return mix(sum, link == chain);
}

enum { l1_links = 256, l1_rounds = 128, l3_links = 49152 };

/// 16 KiB: in every first-level cache.
static bool chase_l1_prepare(void) {
    make_chain(l1_links, l1_rounds);
    return true;
}

/// 3 MiB: beyond the second-level cache.
static bool chase_l3_prepare(void) {
    make_chain(l3_links, 1);
    return true;
}

// --- copies and fills ---------------------------------------------------------------------------------------------------------

enum { block_size = 1 << 20 };

static uint8_t *source, *target;
/// Without `volatile` the compiler would make code of its own of the small sizes.
static size_t volatile small_sizes[] = {64, 100, 128, 192, 256, 320, 512, 777, 1024};
enum { small_count = 9, small_rounds = 64, small_bytes = 3373 * small_rounds };
static size_t volatile large_sizes[] = {65536, 65536, 65536, 65536, 262144, 1048576};
enum { large_count = 6, large_bytes = 4 * 65536 + 262144 + 1048576 };

static bool blocks_prepare(void) {
    uint64_t state = 11;
    // A little more, so that the two do not start at the same place of their pages.
    source = allocate(block_size + 4096);
    target = (uint8_t *)allocate(block_size + 4096) + 1024;
    for (size_t i = 0; i < block_size; i++) source[i] = (uint8_t)(next_random(&state) >> 56);
    return true;
}

/// A sample, so that looking at the result costs little beside making it.
static uint64_t sample(uint64_t checksum, const uint8_t *bytes, size_t size) {
    return mix(checksum, (uint64_t)bytes[0] << 16 | (uint64_t)bytes[size / 2] << 8 | bytes[size - 1]);
}

static uint64_t copy_small_unit(void) {
    uint64_t checksum = 0;
    for (int round = 0; round < small_rounds; round++) {
        for (int i = 0; i < small_count; i++) {
            size_t size = small_sizes[i];
            memcpy(target + round * 64, source + i * 1024 + round, size);
            checksum = sample(checksum, target + round * 64, size);
        }
    }
    return checksum;
}

static uint64_t copy_large_unit(void) {
    uint64_t checksum = 0;
    for (int i = 0; i < large_count; i++) {
        size_t size = large_sizes[i];
        memcpy(target, source + (i < 4 ? i * 65536 : 0), size);
        checksum = sample(checksum, target, size);
    }
    return checksum;
}

static uint64_t fill_small_unit(void) {
    uint64_t checksum = 0;
    for (int round = 0; round < small_rounds; round++) {
        for (int i = 0; i < small_count; i++) {
            size_t size = small_sizes[i];
            memset(target + round * 64 + i, round + i, size);
            checksum = sample(checksum, target + round * 64 + i, size);
        }
    }
    return checksum;
}

static uint64_t fill_large_unit(void) {
    uint64_t checksum = 0;
    for (int i = 0; i < large_count; i++) {
        size_t size = large_sizes[i];
        memset(target + (i < 4 ? i * 65536 : 0), i + 1, size);
        checksum = sample(checksum, target, size);
    }
    return checksum;
}

#define KIB(bytes) ((double)(bytes) / 1024)

const struct row memory_rows[] = {
    {.name = "chase-l1", .operation = "load", .operations = l1_links * l1_rounds, .unit = chase_unit,
     .prepare = chase_l1_prepare},
    {.name = "chase-l3", .operation = "load", .operations = l3_links, .unit = chase_unit, .prepare = chase_l3_prepare},
    {.name = "memcpy-small", .operation = "KiB", .operations = KIB(small_bytes), .unit = copy_small_unit,
     .prepare = blocks_prepare},
    {.name = "memcpy-large", .operation = "KiB", .operations = KIB(large_bytes), .unit = copy_large_unit,
     .prepare = blocks_prepare},
    {.name = "memset-small", .operation = "KiB", .operations = KIB(small_bytes), .unit = fill_small_unit,
     .prepare = blocks_prepare},
    {.name = "memset-large", .operation = "KiB", .operations = KIB(large_bytes), .unit = fill_large_unit,
     .prepare = blocks_prepare},
    {0},
};
