// zlib and zstd as qcow2 uses them: one cluster at a time.
#ifndef MARTLET_COMPRESSION_H
#define MARTLET_COMPRESSION_H

#include <stddef.h>
#include <stdint.h>

enum {
    /// The result does not fit the capacity.
    COMPRESSION_TOO_LARGE = -1,
    /// The input is not a stream of that kind that fills the target.
    COMPRESSION_FAILED = -2,
};

/// The size of the result, or one of the above.
long compression_deflate(const void *_Nonnull source, size_t count, void *_Nonnull target, size_t capacity);
/// Fills `target`, which is `capacity` bytes, or fails; so does the zstd one.
long compression_inflate(const void *_Nonnull source, size_t count, void *_Nonnull target, size_t capacity);
long compression_zstd_compress(const void *_Nonnull source, size_t count, void *_Nonnull target, size_t capacity);
long compression_zstd_decompress(const void *_Nonnull source, size_t count, void *_Nonnull target, size_t capacity);

#endif
