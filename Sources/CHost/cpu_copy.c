#include "cpu_copy.h"

#include <cpuid.h>
#include <immintrin.h>

// CPUID.1:ECX bits 27 and 28, and the kernel keeps YMM registers (SDM vol. 1 §14.3).
static int has_avx(void) {
    static int answer = -1;
    int known = __atomic_load_n(&answer, __ATOMIC_RELAXED);
    if (known >= 0) return known;
    unsigned a, b, c, d;
    known = __get_cpuid(1, &a, &b, &c, &d) && (c >> 27 & 3) == 3;
    if (known) {
        unsigned low, high;
        __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        known = (low & 6) == 6;
    }
    __atomic_store_n(&answer, known, __ATOMIC_RELAXED);
    return known;
}

// Each round reads before it writes, so that a destination below the source may overlap it: what is read later lies above
// all that is written.
__attribute__((target("avx"))) static void copy(char *to, const char *from, uint64_t bytes) {
    const char *last = from + bytes - 128;
    __m256i a, b, c, d;
    for (; from <= last; from += 128, to += 128) {
        a = _mm256_loadu_si256((const __m256i *)from);
        b = _mm256_loadu_si256((const __m256i *)(from + 32));
        c = _mm256_loadu_si256((const __m256i *)(from + 64));
        d = _mm256_loadu_si256((const __m256i *)(from + 96));
        _mm256_storeu_si256((__m256i *)to, a);
        _mm256_storeu_si256((__m256i *)(to + 32), b);
        _mm256_storeu_si256((__m256i *)(to + 64), c);
        _mm256_storeu_si256((__m256i *)(to + 96), d);
    }
    for (last += 96; from <= last; from += 32, to += 32) {
        _mm256_storeu_si256((__m256i *)to, _mm256_loadu_si256((const __m256i *)from));
    }
    _mm256_zeroupper();
    for (last += 32; from < last; from++, to++) *(volatile char *)to = *(const volatile char *)from;
}

int martlet_copy_wide(void *destination, const void *source, uint64_t bytes) {
    if (!has_avx()) return 0;
    copy(destination, source, bytes);
    return 1;
}

__attribute__((target("avx"))) static void fill(char *to, uint64_t pattern, uint64_t bytes) {
    __m256i value = _mm256_set1_epi64x((long long)pattern);
    uint64_t done = 0;
    for (; done + 128 <= bytes; done += 128) {
        _mm256_storeu_si256((__m256i *)(to + done), value);
        _mm256_storeu_si256((__m256i *)(to + done + 32), value);
        _mm256_storeu_si256((__m256i *)(to + done + 64), value);
        _mm256_storeu_si256((__m256i *)(to + done + 96), value);
    }
    for (; done + 32 <= bytes; done += 32) _mm256_storeu_si256((__m256i *)(to + done), value);
    // The end is a multiple of the pattern's size away from the start, as is what is 32 bytes before it.
    if (done < bytes) _mm256_storeu_si256((__m256i *)(to + bytes - 32), value);
    _mm256_zeroupper();
}

int martlet_fill_wide(void *destination, uint64_t value, uint64_t bytes, uint8_t size) {
    if (!has_avx()) return 0;
    uint64_t pattern = value;
    if (size == 1) pattern = (value & 0xFF) * 0x0101010101010101;
    if (size == 2) pattern = (value & 0xFFFF) * 0x0001000100010001;
    if (size == 4) pattern = (value & 0xFFFFFFFF) * 0x0000000100000001;
    fill(destination, pattern, bytes);
    return 1;
}
