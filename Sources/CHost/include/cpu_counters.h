// What the engine counts on its cold paths, for statistics. The run loop and translated code count nothing but what they
// miss: what they hit is the difference to what ran.
#ifndef MARTLET_CPU_COUNTERS_H
#define MARTLET_CPU_COUNTERS_H

#include <stdint.h>

enum { MARTLET_EXCEPTION_VECTORS = 32 };

typedef struct martlet_counters {
    uint64_t fetch_misses;         // walks for the page of an instruction
    uint64_t block_lookups;        // blocks that the jump cache did not have
    uint64_t decoded_blocks;
    uint64_t unlinked_branches;    // direct branches that left translated code to have their target looked up
    uint64_t linked_branches;      // those that lead to their target since then
    uint64_t decoding_cycles;      // host TSC
    uint64_t translation_cycles;
    uint64_t exceptions[MARTLET_EXCEPTION_VECTORS];
} martlet_counters;

#endif
