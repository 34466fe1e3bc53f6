// What CPU/Vector needs from C: places inside the vCPU state that generated code addresses, and memory to generate it in.
#ifndef MARTLET_CPU_VECTOR_H
#define MARTLET_CPU_VECTOR_H

#include "cpu_state.h"

#include <stddef.h>
#include <stdint.h>

// Offsets inside martlet_cpu for generated code. `gpr` is at 0.
static const int32_t martlet_offset_status = offsetof(martlet_cpu, status);
static const int32_t martlet_offset_cr0 = offsetof(martlet_cpu, cr0);
static const int32_t martlet_offset_cr4 = offsetof(martlet_cpu, cr4);
static const int32_t martlet_offset_fx = offsetof(martlet_cpu, fx);
static const int32_t martlet_offset_zmm = offsetof(martlet_cpu, zmm);
static const int32_t martlet_offset_opmask = offsetof(martlet_cpu, opmask);
static const int32_t martlet_offset_units = offsetof(martlet_cpu, vector_units);
_Static_assert(offsetof(martlet_cpu, gpr) == 0, "generated code takes the state for the register file");
_Static_assert(offsetof(martlet_cpu, zmm) % 64 == 0, "aligned vector moves want their size as alignment");
_Static_assert(offsetof(martlet_cpu, bounce) % 64 == 0, "so do operands in the bounce buffer");
_Static_assert(offsetof(martlet_cpu, vector_scratch) % 64 == 0, "and in the scratch area");
_Static_assert(offsetof(martlet_cpu, fx) % 16 == 0, "FXSAVE wants 16-byte alignment");

static inline uint8_t *_Nonnull martlet_vector_scratch(martlet_cpu *_Nonnull cpu) { return cpu->vector_scratch; }

// The FXSAVE image's x87 part, and all of it, as values that Swift can copy without touching the heap.
typedef struct martlet_x87_image {
    uint64_t words[20];
} martlet_x87_image;
typedef struct martlet_fx_image {
    uint64_t words[64];
} martlet_fx_image;
/// Maps `size` bytes twice, for writing and for executing; no address is ever both. 0, or -errno.
long martlet_map_code(size_t size, void *_Nullable *_Nonnull writable, void *_Nullable *_Nonnull executable);
/// The same with `data_size` bytes of zeros, never executable, right behind the executable mapping.
long martlet_map_code_and_data(size_t code_size, size_t data_size, void *_Nullable *_Nonnull writable,
                               void *_Nullable *_Nonnull executable, void *_Nullable *_Nonnull near_data);
/// Replaces both mappings by ones that perf(1) takes for generated code, which it names by /tmp/perf-PID.map: by their
/// file it does not know a memfd for that. -errno: nothing changed. 1: there is no executable mapping any more.
long martlet_map_code_for_perf(size_t size, void *_Nullable *_Nonnull writable, void *_Nonnull executable);
void martlet_unmap_code(size_t size, void *_Nonnull writable, void *_Nonnull executable);

#endif
