// Copies and fills of parts of a page in the host's widest plain registers. The host's string instructions take some 100
// cycles to begin, which whole blocks repay and parts of pages do not.
#ifndef MARTLET_CPU_COPY_H
#define MARTLET_CPU_COPY_H

#include <stdint.h>

enum { MARTLET_WIDE_COPY = 256 }; // bytes from which on these functions may be asked

// Copies `bytes` (at least MARTLET_WIDE_COPY) upwards; the destination does not begin inside the source. 0: not done, the
// host has no AVX.
int martlet_copy_wide(void *_Nonnull destination, const void *_Nonnull source, uint64_t bytes);

// Fills `bytes` (at least MARTLET_WIDE_COPY) with the low `size` (1, 2, 4, 8) bytes of `value`. 0: not done.
int martlet_fill_wide(void *_Nonnull destination, uint64_t value, uint64_t bytes, uint8_t size);

#endif
