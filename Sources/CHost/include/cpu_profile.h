// Samples of a running vCPU, for `martlet run --profile`: a timer interrupts the vCPU's thread, and the signal's handler
// counts what the guest was at. It takes no lock, allocates nothing and changes nothing of the vCPU.
#ifndef MARTLET_CPU_PROFILE_H
#define MARTLET_CPU_PROFILE_H

#include "cpu_state.h"

enum {
    MARTLET_SAMPLE_USER = 1,
    // `rip` is of the page only: which instruction of it was executed could not be found.
    MARTLET_SAMPLE_PAGE = 2,
};

// How often a guest instruction (in translated code: a block) was met. `count` 0: unused.
typedef struct martlet_sample {
    uint64_t rip;
    uint32_t at; // MARTLET_AT_*
    uint32_t flags;
    uint64_t count;
} martlet_sample;

// Where the code of a block begins: distance from the start of the translated code, offset in the guest's page.
typedef struct martlet_code_place {
    uint32_t host;
    uint32_t page_offset;
} martlet_code_place;

typedef struct martlet_range {
    uint64_t start;
    uint64_t size;
} martlet_range;

typedef struct martlet_profile {
    martlet_cpu *_Nonnull cpu;
    martlet_range code;         // translated code
    martlet_range records;      // of its data accesses and branches
    martlet_range instructions; // decoded ones
    // In the order of `host`. Only the vCPU's thread changes them: the entry before the count.
    martlet_code_place *_Nonnull places;
    uint32_t place_count;
    uint32_t sample_bits; // log2 of the room for samples
    martlet_sample *_Nonnull samples;
    uint64_t lost;        // samples that found no room
    uint64_t stack_end;   // of the vCPU's thread, as far as it may be read
    int timer;
    int is_running;
} martlet_profile;

// Starts sampling the calling thread, every `interval_ns`. 0 or -errno.
long martlet_profile_start(martlet_profile *_Nonnull profile, uint64_t interval_ns);
// Ends it; to be called by the same thread. No sample comes after this.
void martlet_profile_stop(martlet_profile *_Nonnull profile);

// The offset of a sample's address in its page, from where the thread was. For tests; the handler uses it.
void martlet_profile_count(martlet_profile *_Nonnull profile, const uint64_t *_Nonnull registers, uint32_t register_count,
                           uint64_t program_counter, uint64_t stack_pointer);

static inline void martlet_profile_add_place(martlet_profile *_Nonnull profile, uint32_t host, uint32_t page_offset) {
    profile->places[profile->place_count] = (martlet_code_place){host, page_offset};
    __atomic_store_n(&profile->place_count, profile->place_count + 1, __ATOMIC_RELEASE);
}

#endif
