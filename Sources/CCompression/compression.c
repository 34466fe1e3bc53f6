#include "compression.h"

#include <string.h>
#include <zlib.h>
#include <zstd.h>

// Raw deflate, no zlib header (qcow2 specification, "Additional fields"). A window of 4 KiB is what other readers of the
// format are sure to take; to read, the largest window takes what anybody has written.
#define WRITE_WINDOW_BITS (-12)
#define READ_WINDOW_BITS (-15)

long compression_deflate(const void *source, size_t count, void *target, size_t capacity) {
    z_stream stream;
    memset(&stream, 0, sizeof stream);
    if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, WRITE_WINDOW_BITS, 9, Z_DEFAULT_STRATEGY) != Z_OK)
        return COMPRESSION_FAILED;
    stream.next_in = (unsigned char *)(uintptr_t)source;
    stream.avail_in = (unsigned)count;
    stream.next_out = target;
    stream.avail_out = (unsigned)capacity;
    int result = deflate(&stream, Z_FINISH);
    long size = (long)(capacity - stream.avail_out);
    deflateEnd(&stream);
    if (result == Z_STREAM_END) return size;
    return result == Z_OK || result == Z_BUF_ERROR ? COMPRESSION_TOO_LARGE : COMPRESSION_FAILED;
}

long compression_inflate(const void *source, size_t count, void *target, size_t capacity) {
    z_stream stream;
    memset(&stream, 0, sizeof stream);
    if (inflateInit2(&stream, READ_WINDOW_BITS) != Z_OK) return COMPRESSION_FAILED;
    stream.next_in = (unsigned char *)(uintptr_t)source;
    stream.avail_in = (unsigned)count;
    stream.next_out = target;
    stream.avail_out = (unsigned)capacity;
    int result = inflate(&stream, Z_FINISH);
    int filled = stream.avail_out == 0;
    inflateEnd(&stream);
    // What follows the cluster's stream in its last sector is not ours to look at.
    return filled && (result == Z_STREAM_END || result == Z_OK || result == Z_BUF_ERROR) ? (long)capacity
                                                                                          : COMPRESSION_FAILED;
}

long compression_zstd_compress(const void *source, size_t count, void *target, size_t capacity) {
    size_t result = ZSTD_compress(target, capacity, source, count, ZSTD_CLEVEL_DEFAULT);
    return ZSTD_isError(result) ? COMPRESSION_TOO_LARGE : (long)result;
}

long compression_zstd_decompress(const void *source, size_t count, void *target, size_t capacity) {
    ZSTD_DCtx *context = ZSTD_createDCtx();
    if (!context) return COMPRESSION_FAILED;
    // A cluster has at most 2 MiB: no frame needs a larger window, and a hostile one may not make us allocate it.
    ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, 22);
    ZSTD_inBuffer input = {source, count, 0};
    ZSTD_outBuffer output = {target, capacity, 0};
    while (output.pos < output.size) {
        size_t before = output.pos + input.pos;
        size_t result = ZSTD_decompressStream(context, &output, &input);
        if (ZSTD_isError(result) || output.pos + input.pos == before) break;
    }
    ZSTD_freeDCtx(context);
    return output.pos == output.size ? (long)capacity : COMPRESSION_FAILED;
}
