// What the processor tells of to whoever traces it.
#ifndef MARTLET_CPU_TRACE_H
#define MARTLET_CPU_TRACE_H

#include <stdint.h>

// Bits of `martlet_trace.kinds`.
enum {
    MARTLET_TRACE_FAULTS = 1,
    MARTLET_TRACE_BLOCKS = 2,
};

enum {
    MARTLET_TRACE_FAULT,
    MARTLET_TRACE_DECODED,    // the hook's answer other than 0: tell of each entry too
    MARTLET_TRACE_TRANSLATED,
    MARTLET_TRACE_ENTERED,
};

typedef struct martlet_trace_event {
    uint32_t kind;
    uint32_t is_user;
    uint32_t mode;         // code size, as martlet_cpu.mode
    uint32_t vector;
    uint32_t error;
    uint32_t has_error;
    uint64_t rip;
    uint64_t address;      // fault: cr2; decoded block: guest-physical
    uint32_t bytes;        // of guest code
    uint32_t instructions;
    uint64_t host;         // translated code
    uint64_t host_size;
} martlet_trace_event;

typedef struct martlet_trace {
    void *_Nullable context;
    int (*_Nullable hook)(void *_Nullable context, const martlet_trace_event *_Nonnull event);
    uint32_t kinds;
} martlet_trace;

#endif
