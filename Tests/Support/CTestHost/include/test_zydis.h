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

#endif
