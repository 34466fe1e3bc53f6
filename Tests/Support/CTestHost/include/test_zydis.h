// Zydis as a second opinion on the decoder (Debian: libzydis-dev). For tests only.
#ifndef MARTLET_TEST_ZYDIS_H
#define MARTLET_TEST_ZYDIS_H

#include <stddef.h>
#include <stdint.h>

// Whether the tests were built with Zydis.
int test_zydis_available(void);

// Decodes for code of 16, 32 or 64 bits. Returns the length, 0 for an undefined instruction, -1 for one longer than 15
// bytes or than `count`; and names the instruction and the instruction set that it is of.
int test_zydis_decode(const uint8_t *_Nonnull bytes, size_t count, int bits,
                      const char *_Nonnull *_Nonnull mnemonic, const char *_Nonnull *_Nonnull set);


// The memory operand of an instruction: bytes of all of it and of an element, the displacement, and the exception type
// where it is one without fault suppression (E4NF and so on), else null. Returns the length; 0: undefined.
typedef struct test_zydis_memory {
    int size;
    int element;
    int is_written;
    int64_t displacement;
    const char *_Nullable unsuppressed;
} test_zydis_memory;
int test_zydis_operands(const uint8_t *_Nonnull bytes, size_t count, int bits, test_zydis_memory *_Nonnull memory);

#endif
