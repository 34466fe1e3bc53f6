// Rows of plain integer code: registers, branches, calls, and little memory.
#include "bench.h"

#include <string.h>

// --- integer: arithmetic in registers, with a multiplication each time and a division now and then ---------------------

enum { integer_steps = 50000 };

static uint64_t integer_unit(void) {
    uint64_t a = 0x0123456789abcdef, b = 0xfedcba9876543210, c = 1;
    for (uint32_t i = 1; i <= integer_steps; i++) {
        a += b ^ i;
        b = b << 13 | b >> 51;
        c += a * 0x9e3779b1 + (b & 0xff);
        if (c & 1) a ^= c >> 7;
        if (i % 16 == 0) b += c / i;
        a -= (uint32_t)c;
    }
    return mix(mix(a, b), c);
}

// --- sort: quicksort with a comparison through a pointer, insertion sort for the rest ------------------------------------

enum { sort_count = 2048 };

typedef int (*comparison)(const uint32_t *, const uint32_t *);

static uint32_t sort_input[sort_count], sort_numbers[sort_count];

__attribute__((noipa)) static int ascending(const uint32_t *a, const uint32_t *b) { return (*a > *b) - (*a < *b); }

static void insertion_sort(uint32_t *numbers, long count, comparison compare) {
    for (long i = 1; i < count; i++) {
        uint32_t moved = numbers[i];
        long j = i;
        for (; j > 0 && compare(&moved, &numbers[j - 1]) < 0; j--) numbers[j] = numbers[j - 1];
        numbers[j] = moved;
    }
}

static void exchange(uint32_t *a, uint32_t *b) {
    uint32_t old = *a;
    *a = *b;
    *b = old;
}

__attribute__((noipa)) static void quick_sort(uint32_t *numbers, long count, comparison compare) {
    while (count > 12) {
        // The median of three as pivot, at the front.
        uint32_t *middle = &numbers[count / 2], *last = &numbers[count - 1];
        if (compare(middle, numbers) < 0) exchange(middle, numbers);
        if (compare(last, numbers) < 0) exchange(last, numbers);
        if (compare(last, middle) < 0) exchange(last, middle);
        uint32_t pivot = *middle;
        long i = 0, j = count - 1;
        while (i <= j) {
            while (compare(&numbers[i], &pivot) < 0) i++;
            while (compare(&pivot, &numbers[j]) < 0) j--;
            if (i <= j) exchange(&numbers[i++], &numbers[j--]);
        }
        quick_sort(numbers, j + 1, compare);
        numbers += i;
        count -= i;
    }
    insertion_sort(numbers, count, compare);
}

static bool sort_prepare(void) {
    uint64_t state = 42;
    for (int i = 0; i < sort_count; i++) sort_input[i] = (uint32_t)next_random(&state);
    return true;
}

static uint64_t sort_unit(void) {
    for (int i = 0; i < sort_count; i++) sort_numbers[i] = sort_input[i];
    quick_sort(sort_numbers, sort_count, ascending);
    uint64_t checksum = 0;
    for (int i = 0; i < sort_count; i += 64) checksum = mix(checksum, sort_numbers[i]);
    for (int i = 1; i < sort_count; i++) checksum += sort_numbers[i - 1] > sort_numbers[i];
    return checksum;
}

// --- sha256: FIPS 180-4 ---------------------------------------------------------------------------------------------------

enum { sha256_size = 16384 };

static uint32_t sha256_constants[64];
static uint8_t sha256_message[sha256_size];

/// The first 32 bits of the fraction of the cube root of `prime` (§4.2.2), by bisection in integers.
static uint32_t cube_root_fraction(uint32_t prime) {
    // The root with 32 binary digits after the point: root³ ≤ prime · 2⁹⁶.
    uint64_t low = 0, high = UINT64_C(8) << 32;
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        // middle < 2³⁵, its square < 2⁷⁰; compare middle³ / 2³² with prime · 2⁶⁴, both below 2⁷⁴.
        unsigned __int128 square = (unsigned __int128)middle * middle;
        unsigned __int128 cube = (square >> 32) * middle + (((square & 0xffffffff) * middle) >> 32);
        if (cube >= (unsigned __int128)prime << 64) {
            high = middle;
        } else {
            low = middle;
        }
    }
    return (uint32_t)low;
}

static bool sha256_prepare(void) {
    uint32_t prime = 2;
    for (int i = 0; i < 64; prime++) {
        bool is_prime = true;
        for (uint32_t d = 2; d * d <= prime; d++) is_prime = is_prime && prime % d != 0;
        if (is_prime) sha256_constants[i++] = cube_root_fraction(prime);
    }
    for (int i = 0; i < sha256_size; i++) sha256_message[i] = (uint8_t)(i * 7 + (i >> 8));
    return true;
}

static inline uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha256_block(uint32_t state[8], const uint8_t *block) {
    uint32_t w[64];
    for (int i = 0; i < 16; i++) {
        uint32_t word;
        memcpy(&word, block + 4 * i, 4);
        w[i] = __builtin_bswap32(word);
    }
    for (int i = 16; i < 64; i++) {
        uint32_t x = w[i - 15], y = w[i - 2];
        w[i] = w[i - 16] + (rotate(x, 7) ^ rotate(x, 18) ^ x >> 3) + w[i - 7] + (rotate(y, 17) ^ rotate(y, 19) ^ y >> 10);
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; i++) {
        uint32_t t = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + sha256_constants[i] + w[i];
        uint32_t u = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t, d = c, c = b, b = a, a = t + u;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

static uint64_t sha256_unit(void) {
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    for (int i = 0; i < sha256_size; i += 64) sha256_block(state, sha256_message + i);
    uint8_t end[64] = {0x80};
    for (int i = 0; i < 8; i++) end[56 + i] = (uint8_t)((uint64_t)sha256_size * 8 >> (56 - 8 * i));
    sha256_block(state, end);
    // The first eight bytes of the digest: `sha256sum` of the message says the same.
    return (uint64_t)state[0] << 32 | state[1];
}

// --- sieve: of Eratosthenes, a byte for each number ------------------------------------------------------------------------

enum { sieve_size = 32768 };

static uint8_t sieve_composite[sieve_size];

static uint64_t sieve_unit(void) {
    uint64_t count = 0, sum = 0;
    for (int i = 0; i < sieve_size; i++) sieve_composite[i] = 0;
    for (int i = 2; i < sieve_size; i++) {
        if (sieve_composite[i]) continue;
        count++, sum += (uint64_t)i;
        for (int j = 2 * i; j < sieve_size; j += i) sieve_composite[j] = 1;
    }
    return mix(count, sum);
}

// --- recursion: calls and returns, seven deep on average --------------------------------------------------------------------

enum { fibonacci_of = 24, fibonacci_calls = 150049 };

__attribute__((noipa)) static uint64_t fibonacci(uint64_t n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

static uint64_t recursion_unit(void) { return fibonacci(fibonacci_of); }

// --- indirect: calls through a table, in an order that no branch predictor knows in advance ---------------------------------

enum { indirect_calls = 16384 };

typedef uint64_t (*step)(uint64_t);

#define STEP(name, expression) \
    __attribute__((noipa)) static uint64_t name(uint64_t x) { return expression; }
STEP(step0, x + 0x51)
STEP(step1, x ^ x >> 3)
STEP(step2, x * 5)
STEP(step3, x - (x >> 1))
STEP(step4, x << 7 | x >> 57)
STEP(step5, ~x)
STEP(step6, x ^ 0x5555)
STEP(step7, x + (x << 2))

static step volatile indirect_steps[8] = {step0, step1, step2, step3, step4, step5, step6, step7};
static uint8_t indirect_order[indirect_calls];

static bool indirect_prepare(void) {
    uint64_t state = 7;
    for (int i = 0; i < indirect_calls; i++) indirect_order[i] = next_random(&state) >> 61 & 7;
    return true;
}

static uint64_t indirect_unit(void) {
    uint64_t x = 1;
    // Runs of one target, then a change: three of four calls go where the last one went.
    for (int i = 0; i < indirect_calls; i++) x = indirect_steps[indirect_order[i & ~3]](x);
    return x;
}

// --- interpreter: a register machine of our own with a jump for each instruction ----------------------------------------------

enum { op_set, op_add, op_subtract, op_multiply, op_and, op_shift, op_less, op_branch, op_load, op_store, op_end };

struct instruction {
    uint8_t operation, to, a, b;
    int32_t value;
};

/// Fills a table with x = x · 1103515245 + 12345 and adds up what is odd in it, ten times.
static const struct instruction program[] = {
    {op_set, 0, 0, 0, 0},          // round
    {op_set, 1, 0, 0, 1},          // one
    {op_set, 2, 0, 0, 10},         // rounds
    {op_set, 3, 0, 0, 256},        // size
    {op_set, 4, 0, 0, 12345},      // x
    {op_set, 5, 0, 0, 1103515245}, // multiplier
    {op_set, 6, 0, 0, 0},          // sum
    {op_set, 7, 0, 0, 0},          // 7: index of a round
    {op_multiply, 4, 4, 5, 0},     // 8: fill
    {op_add, 4, 4, 1, 0},
    {op_shift, 8, 4, 0, 16},
    {op_store, 8, 7, 0, 0},
    {op_add, 7, 7, 1, 0},
    {op_less, 9, 7, 3, 0},
    {op_branch, 9, 0, 0, 8},
    {op_set, 7, 0, 0, 0},
    {op_load, 8, 7, 0, 0},         // 16: sum
    {op_and, 9, 8, 1, 0},
    {op_subtract, 9, 1, 9, 0},
    {op_branch, 9, 0, 0, 21},
    {op_add, 6, 6, 8, 0},
    {op_add, 7, 7, 1, 0},          // 21
    {op_less, 9, 7, 3, 0},
    {op_branch, 9, 0, 0, 16},
    {op_add, 0, 0, 1, 0},
    {op_less, 9, 0, 2, 0},
    {op_branch, 9, 0, 0, 7},
    {op_end, 6, 0, 0, 0},
};
/// What that executes: 7 instructions for each number stored, 7 or 8 for each looked at.
enum { interpreter_instructions = 37179 };

__attribute__((noipa)) static uint64_t interpret(const struct instruction *code) {
    static const void *const labels[] = {&&set, &&add, &&subtract, &&multiply, &&and, &&shift,
                                         &&less, &&branch, &&load, &&store, &&end};
    uint64_t r[16] = {0};
    static uint64_t memory[256];
    const struct instruction *i = code;
#define NEXT goto *labels[(++i)->operation]
    goto *labels[i->operation];
set:
    r[i->to] = (uint64_t)(int64_t)i->value;
    NEXT;
add:
    r[i->to] = r[i->a] + r[i->b];
    NEXT;
subtract:
    r[i->to] = r[i->a] - r[i->b];
    NEXT;
multiply:
    r[i->to] = r[i->a] * r[i->b];
    NEXT;
and:
    r[i->to] = r[i->a] & r[i->b];
    NEXT;
shift:
    r[i->to] = r[i->a] >> (i->value & 63);
    NEXT;
less:
    r[i->to] = r[i->a] < r[i->b];
    NEXT;
branch:
    if (r[i->to]) {
        i = code + i->value;
        goto *labels[i->operation];
    }
    NEXT;
load:
    r[i->to] = memory[r[i->a] & 255];
    NEXT;
store:
    memory[r[i->a] & 255] = r[i->to];
    NEXT;
end:
    return r[i->to];
#undef NEXT
}

static uint64_t interpreter_unit(void) { return interpret(program); }

const struct row compute_rows[] = {
    {.name = "integer", .operation = "step", .operations = integer_steps, .unit = integer_unit},
    {.name = "sort", .operation = "number", .operations = sort_count, .unit = sort_unit, .prepare = sort_prepare},
    {.name = "sha256", .operation = "byte", .operations = sha256_size, .unit = sha256_unit, .prepare = sha256_prepare},
    {.name = "sieve", .operation = "number", .operations = sieve_size, .unit = sieve_unit},
    {.name = "recursion", .operation = "call", .operations = fibonacci_calls, .unit = recursion_unit},
    {.name = "indirect", .operation = "call", .operations = indirect_calls, .unit = indirect_unit,
     .prepare = indirect_prepare},
    {.name = "interpreter", .operation = "instruction", .operations = interpreter_instructions,
     .unit = interpreter_unit},
    {0},
};
