#include "cpu_state.h"

#include <emmintrin.h>

uint32_t martlet_next_number(const uint32_t *numbers, uint32_t from, uint32_t count, uint32_t number) {
    uint32_t index = from;
    const __m128i wanted = _mm_set1_epi32((int)number);
    // Thousands are looked through for one page, and mostly nothing is found: 16 at a time.
    for (; index + 16 <= count; index += 16) {
        const __m128i *four = (const __m128i *)(numbers + index);
        __m128i a = _mm_cmpeq_epi32(_mm_loadu_si128(four), wanted), b = _mm_cmpeq_epi32(_mm_loadu_si128(four + 1), wanted);
        __m128i c = _mm_cmpeq_epi32(_mm_loadu_si128(four + 2), wanted), d = _mm_cmpeq_epi32(_mm_loadu_si128(four + 3), wanted);
        if (_mm_movemask_epi8(_mm_or_si128(_mm_or_si128(a, b), _mm_or_si128(c, d))) != 0) break;
    }
    while (index < count && numbers[index] != number) index++;
    return index;
}
