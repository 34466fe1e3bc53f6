// Arithmetic as the host's own processor does it. Guest and host are the same architecture, so each operation is the
// instruction itself, and its flags (defined and undefined alike) are read with LAHF and SETO instead of being computed:
// status word = OF in bit 0; SF ZF AF PF CF in bits 15 14 12 10 8.
#ifndef MARTLET_CPU_ALU_H
#define MARTLET_CPU_ALU_H

#include <stdint.h>

#include "cpu_copy.h"

// clang-format off
#define CAPTURE "lahf\n\tseto %%al"
#define RESTORE "addb $127, %%al\n\tsahf\n\t"

// Two operands, flags written only.
#define MARTLET_BINARY(NAME, INSN, SFX, BITS)                                                         \
    static inline __attribute__((always_inline)) uint##BITS##_t alu_##NAME##BITS(uint##BITS##_t a, uint##BITS##_t b,                  \
                                                  uint16_t *_Nonnull status) {                         \
        uint16_t flags;                                                                                \
        __asm__(INSN SFX " %2, %0\n\t" CAPTURE : "+r"(a), "=&a"(flags) : "r"(b) : "cc");               \
        *status = flags;                                                                               \
        return a;                                                                                      \
    }
// Two operands, CF taken from the status word.
#define MARTLET_BINARY_CARRY(NAME, INSN, SFX, BITS)                                                    \
    static inline __attribute__((always_inline)) uint##BITS##_t alu_##NAME##BITS(uint##BITS##_t a, uint##BITS##_t b,                  \
                                                  uint16_t *_Nonnull status) {                         \
        uint16_t flags = *status;                                                                      \
        __asm__("btw $8, %1\n\t" INSN SFX " %2, %0\n\t" CAPTURE                                        \
                : "+r"(a), "+&a"(flags) : "r"(b) : "cc");                                              \
        *status = flags;                                                                               \
        return a;                                                                                      \
    }
// One operand, other flags kept.
#define MARTLET_UNARY(NAME, INSN, SFX, BITS)                                                           \
    static inline __attribute__((always_inline)) uint##BITS##_t alu_##NAME##BITS(uint##BITS##_t a, uint16_t *_Nonnull status) {       \
        uint16_t flags = *status;                                                                      \
        __asm__(RESTORE INSN SFX " %0\n\t" CAPTURE : "+r"(a), "+&a"(flags) : : "cc");                  \
        *status = flags;                                                                               \
        return a;                                                                                      \
    }
// Shift or rotate by CL, other flags kept (a count of 0 changes none).
#define MARTLET_SHIFT(NAME, INSN, SFX, BITS)                                                           \
    static inline __attribute__((always_inline)) uint##BITS##_t alu_##NAME##BITS(uint##BITS##_t a, uint8_t count,                     \
                                                  uint16_t *_Nonnull status) {                         \
        uint16_t flags = *status;                                                                      \
        __asm__(RESTORE INSN SFX " %%cl, %0\n\t" CAPTURE : "+r"(a), "+&a"(flags) : "c"(count) : "cc"); \
        *status = flags;                                                                               \
        return a;                                                                                      \
    }
// Destination, source and CL.
#define MARTLET_DOUBLE_SHIFT(NAME, INSN, SFX, BITS)                                                    \
    static inline __attribute__((always_inline)) uint##BITS##_t alu_##NAME##BITS(uint##BITS##_t a, uint##BITS##_t b, uint8_t count,   \
                                                  uint16_t *_Nonnull status) {                         \
        uint16_t flags = *status;                                                                      \
        __asm__(RESTORE INSN SFX " %%cl, %3, %0\n\t" CAPTURE                                           \
                : "+r"(a), "+&a"(flags) : "c"(count), "r"(b) : "cc");                                  \
        *status = flags;                                                                               \
        return a;                                                                                      \
    }
// Destination (may stay unchanged) and source, other flags kept: bit scans and bit tests.
#define MARTLET_SCAN(NAME, INSN, SFX, BITS)                                                            \
    static inline __attribute__((always_inline)) uint##BITS##_t alu_##NAME##BITS(uint##BITS##_t a, uint##BITS##_t b,                  \
                                                  uint16_t *_Nonnull status) {                         \
        uint16_t flags = *status;                                                                      \
        __asm__(RESTORE INSN SFX " %2, %0\n\t" CAPTURE : "+r"(a), "+&a"(flags) : "r"(b) : "cc");       \
        *status = flags;                                                                               \
        return a;                                                                                      \
    }
// Locked read-modify-write on host memory; returns nothing but flags.
#define MARTLET_LOCKED(NAME, INSN, SFX, BITS)                                                          \
    static inline __attribute__((always_inline)) void alu_locked_##NAME##BITS(void *_Nonnull memory, uint##BITS##_t b,                \
                                               uint16_t *_Nonnull status) {                            \
        uint16_t flags = *status;                                                                      \
        __asm__ volatile("btw $8, %1\n\tlock " INSN SFX " %2, %0\n\t" CAPTURE                          \
                         : "+m"(*(uint##BITS##_t *)memory), "+&a"(flags) : "r"(b) : "cc", "memory");   \
        *status = flags;                                                                               \
    }
#define MARTLET_LOCKED_UNARY(NAME, INSN, SFX, BITS)                                                    \
    static inline __attribute__((always_inline)) void alu_locked_##NAME##BITS(void *_Nonnull memory, uint16_t *_Nonnull status) {     \
        uint16_t flags = *status;                                                                      \
        __asm__ volatile(RESTORE "lock " INSN SFX " %0\n\t" CAPTURE                                    \
                         : "+m"(*(uint##BITS##_t *)memory), "+&a"(flags) : : "cc", "memory");          \
        *status = flags;                                                                               \
    }
// LOCK XADD and LOCK CMPXCHG: the register operand comes back changed.
#define MARTLET_LOCKED_EXCHANGE(SFX, BITS)                                                             \
    static inline __attribute__((always_inline)) uint##BITS##_t alu_locked_xadd##BITS(void *_Nonnull memory, uint##BITS##_t b,        \
                                                       uint16_t *_Nonnull status) {                    \
        uint16_t flags;                                                                                \
        __asm__ volatile("lock xadd" SFX " %2, %0\n\t" CAPTURE                                         \
                         : "+m"(*(uint##BITS##_t *)memory), "=&a"(flags), "+r"(b) : : "cc", "memory"); \
        *status = flags;                                                                               \
        return b;                                                                                      \
    }                                                                                                  \
    static inline __attribute__((always_inline)) uint##BITS##_t alu_locked_cmpxchg##BITS(void *_Nonnull memory, uint##BITS##_t a,     \
                                                          uint##BITS##_t b,                            \
                                                          uint16_t *_Nonnull status) {                 \
        uint64_t flags = a, old;                                                                       \
        __asm__ volatile("lock cmpxchg" SFX " %3, %0\n\tmovq %%rax, %2\n\t" CAPTURE                    \
                         : "+m"(*(uint##BITS##_t *)memory), "+&a"(flags), "=&r"(old)                   \
                         : "r"(b) : "cc", "memory");                                                   \
        *status = (uint16_t)flags;                                                                     \
        return (uint##BITS##_t)old;                                                                    \
    }                                                                                                  \
    static inline __attribute__((always_inline)) uint##BITS##_t alu_exchange##BITS(void *_Nonnull memory, uint##BITS##_t b) {         \
        return __atomic_exchange_n((uint##BITS##_t *)memory, b, __ATOMIC_SEQ_CST);                     \
    }

#define MARTLET_ALL_BYTE_OK(M, NAME, INSN) M(NAME, INSN, "b", 8) M(NAME, INSN, "w", 16) M(NAME, INSN, "l", 32) M(NAME, INSN, "q", 64)
#define MARTLET_ALL_NO_BYTE(M, NAME, INSN) M(NAME, INSN, "w", 16) M(NAME, INSN, "l", 32) M(NAME, INSN, "q", 64)

MARTLET_ALL_BYTE_OK(MARTLET_BINARY, add, "add")
MARTLET_ALL_BYTE_OK(MARTLET_BINARY, or, "or")
MARTLET_ALL_BYTE_OK(MARTLET_BINARY, and, "and")
MARTLET_ALL_BYTE_OK(MARTLET_BINARY, sub, "sub")
MARTLET_ALL_BYTE_OK(MARTLET_BINARY, xor, "xor")
MARTLET_ALL_BYTE_OK(MARTLET_BINARY, cmp, "cmp")
MARTLET_ALL_BYTE_OK(MARTLET_BINARY, test, "test")
MARTLET_ALL_BYTE_OK(MARTLET_BINARY_CARRY, adc, "adc")
MARTLET_ALL_BYTE_OK(MARTLET_BINARY_CARRY, sbb, "sbb")
MARTLET_ALL_BYTE_OK(MARTLET_UNARY, inc, "inc")
MARTLET_ALL_BYTE_OK(MARTLET_UNARY, dec, "dec")
MARTLET_ALL_BYTE_OK(MARTLET_UNARY, neg, "neg")
MARTLET_ALL_BYTE_OK(MARTLET_SHIFT, rol, "rol")
MARTLET_ALL_BYTE_OK(MARTLET_SHIFT, ror, "ror")
MARTLET_ALL_BYTE_OK(MARTLET_SHIFT, rcl, "rcl")
MARTLET_ALL_BYTE_OK(MARTLET_SHIFT, rcr, "rcr")
MARTLET_ALL_BYTE_OK(MARTLET_SHIFT, shl, "shl")
MARTLET_ALL_BYTE_OK(MARTLET_SHIFT, shr, "shr")
MARTLET_ALL_BYTE_OK(MARTLET_SHIFT, sar, "sar")
MARTLET_ALL_NO_BYTE(MARTLET_DOUBLE_SHIFT, shld, "shld")
MARTLET_ALL_NO_BYTE(MARTLET_DOUBLE_SHIFT, shrd, "shrd")
MARTLET_ALL_NO_BYTE(MARTLET_SCAN, bsf, "bsf")
MARTLET_ALL_NO_BYTE(MARTLET_SCAN, bsr, "bsr")
MARTLET_ALL_NO_BYTE(MARTLET_SCAN, imul, "imul")
MARTLET_ALL_NO_BYTE(MARTLET_SCAN, bt, "bt")
MARTLET_ALL_NO_BYTE(MARTLET_SCAN, bts, "bts")
MARTLET_ALL_NO_BYTE(MARTLET_SCAN, btr, "btr")
MARTLET_ALL_NO_BYTE(MARTLET_SCAN, btc, "btc")
MARTLET_ALL_BYTE_OK(MARTLET_LOCKED, add, "add")
MARTLET_ALL_BYTE_OK(MARTLET_LOCKED, or, "or")
MARTLET_ALL_BYTE_OK(MARTLET_LOCKED, and, "and")
MARTLET_ALL_BYTE_OK(MARTLET_LOCKED, sub, "sub")
MARTLET_ALL_BYTE_OK(MARTLET_LOCKED, xor, "xor")
MARTLET_ALL_BYTE_OK(MARTLET_LOCKED, adc, "adc")
MARTLET_ALL_BYTE_OK(MARTLET_LOCKED, sbb, "sbb")
MARTLET_ALL_BYTE_OK(MARTLET_LOCKED_UNARY, inc, "inc")
MARTLET_ALL_BYTE_OK(MARTLET_LOCKED_UNARY, dec, "dec")
MARTLET_ALL_BYTE_OK(MARTLET_LOCKED_UNARY, neg, "neg")
MARTLET_LOCKED_EXCHANGE("b", 8)
MARTLET_LOCKED_EXCHANGE("w", 16)
MARTLET_LOCKED_EXCHANGE("l", 32)
MARTLET_LOCKED_EXCHANGE("q", 64)

// One-operand multiplication: low half returned, high half stored. Undefined flags are the host's, which may keep those
// that it finds.
#define MARTLET_MULTIPLY(NAME, INSN, SFX, BITS)                                                        \
    static inline __attribute__((always_inline)) uint##BITS##_t alu_##NAME##BITS(uint##BITS##_t a, uint##BITS##_t b,                  \
                                                  uint##BITS##_t *_Nonnull high,                       \
                                                  uint16_t *_Nonnull status) {                         \
        uint64_t flags = *status, low, first = a;                                                      \
        uint##BITS##_t d;                                                                              \
        __asm__(RESTORE "movq %4, %%rax\n\t" INSN SFX " %3\n\tmovq %%rax, %2\n\t" CAPTURE              \
                : "+&a"(flags), "=&d"(d), "=&r"(low) : "r"(b), "r"(first) : "cc");                     \
        *high = d;                                                                                     \
        *status = (uint16_t)flags;                                                                     \
        return (uint##BITS##_t)low;                                                                    \
    }
MARTLET_ALL_NO_BYTE(MARTLET_MULTIPLY, mul, "mul")
MARTLET_ALL_NO_BYTE(MARTLET_MULTIPLY, imulwide, "imul")
// AL * operand: the whole product in AX.
#define MARTLET_MULTIPLY8(NAME, INSN)                                                                  \
    static inline __attribute__((always_inline)) uint16_t alu_##NAME##8(uint8_t a, uint8_t b, uint16_t *_Nonnull status) {            \
        uint16_t flags = *status, product, first = a;                                                  \
        __asm__(RESTORE "movw %3, %%ax\n\t" INSN " %2\n\tmovw %%ax, %1\n\t" CAPTURE                    \
                : "+&a"(flags), "=&r"(product) : "r"(b), "r"(first) : "cc");                           \
        *status = flags;                                                                               \
        return product;                                                                                \
    }
MARTLET_MULTIPLY8(mul, "mulb")
MARTLET_MULTIPLY8(imulwide, "imulb")

// 128-bit by 64-bit division; the caller has ruled out a zero divisor and a quotient that does not fit.
static inline __attribute__((always_inline)) uint64_t alu_div128(uint64_t high, uint64_t low, uint64_t divisor, uint64_t *_Nonnull remainder) {
    uint64_t quotient = low, rest = high;
    __asm__("divq %2" : "+a"(quotient), "+d"(rest) : "r"(divisor) : "cc");
    *remainder = rest;
    return quotient;
}

// Decimal adjustments exist only outside 64-bit mode, so the host cannot run them: they are computed in Swift.

static inline __attribute__((always_inline)) uint64_t alu_rdtsc(void) {
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return ((uint64_t)high << 32) | low;
}

static inline __attribute__((always_inline)) uint64_t alu_crc32(uint64_t crc, uint64_t value, uint8_t size) {
    switch (size) {
    case 1: __asm__("crc32b %b1, %k0" : "+r"(crc) : "q"(value)); break;
    case 2: __asm__("crc32w %w1, %k0" : "+r"(crc) : "r"(value)); break;
    case 4: __asm__("crc32l %k1, %k0" : "+r"(crc) : "r"(value)); break;
    default: __asm__("crc32q %1, %0" : "+r"(crc) : "r"(value)); break;
    }
    return crc;
}

// REP MOVS and REP STOS upwards on host memory, as the processor's own instructions: also where the blocks overlap.
static inline __attribute__((always_inline)) void alu_rep_movs(void *_Nonnull destination, const void *_Nonnull source, uint64_t count, uint8_t size) {
    uint64_t bytes = count * size;
    // A destination inside the source repeats what is before it.
    if (bytes >= MARTLET_WIDE_COPY && (uint64_t)((char *)destination - (const char *)source) >= bytes &&
        martlet_copy_wide(destination, source, bytes)) return;
    switch (size) {
    case 1: __asm__ volatile("rep movsb" : "+D"(destination), "+S"(source), "+c"(count) : : "memory"); break;
    case 2: __asm__ volatile("rep movsw" : "+D"(destination), "+S"(source), "+c"(count) : : "memory"); break;
    case 4: __asm__ volatile("rep movsl" : "+D"(destination), "+S"(source), "+c"(count) : : "memory"); break;
    default: __asm__ volatile("rep movsq" : "+D"(destination), "+S"(source), "+c"(count) : : "memory"); break;
    }
}
static inline __attribute__((always_inline)) void alu_rep_stos(void *_Nonnull destination, uint64_t value, uint64_t count, uint8_t size) {
    if (count * size >= MARTLET_WIDE_COPY && martlet_fill_wide(destination, value, count * size, size)) return;
    switch (size) {
    case 1: __asm__ volatile("rep stosb" : "+D"(destination), "+c"(count) : "a"(value) : "memory"); break;
    case 2: __asm__ volatile("rep stosw" : "+D"(destination), "+c"(count) : "a"(value) : "memory"); break;
    case 4: __asm__ volatile("rep stosl" : "+D"(destination), "+c"(count) : "a"(value) : "memory"); break;
    default: __asm__ volatile("rep stosq" : "+D"(destination), "+c"(count) : "a"(value) : "memory"); break;
    }
}

// REP CMPS and REP SCAS upwards on host memory, `count` at least 1: until the elements differ (`whileEqual`) or are equal.
// Returns how many are left; the flags are those of the last comparison.
#define MARTLET_REP_COMPARE(NAME, PREFIX, INSN)                                                                       \
    static inline __attribute__((always_inline)) uint64_t alu_##NAME(const void *_Nonnull left, const void *_Nonnull right, uint64_t count, \
                                                  uint64_t value, uint16_t *_Nonnull status) {                        \
        uint64_t a = value;                                                                                           \
        __asm__ volatile(PREFIX INSN "\n\t" CAPTURE                                                                   \
                         : "+S"(left), "+D"(right), "+c"(count), "+&a"(a) : : "cc", "memory");                        \
        *status = (uint16_t)a;                                                                                        \
        return count;                                                                                                 \
    }
#define MARTLET_REP_COMPARES(NAME, INSN)                                                                              \
    MARTLET_REP_COMPARE(repe_##NAME, "repe ", INSN)                                                                   \
    MARTLET_REP_COMPARE(repne_##NAME, "repne ", INSN)
MARTLET_REP_COMPARES(cmps8, "cmpsb")
MARTLET_REP_COMPARES(cmps16, "cmpsw")
MARTLET_REP_COMPARES(cmps32, "cmpsl")
MARTLET_REP_COMPARES(cmps64, "cmpsq")
MARTLET_REP_COMPARES(scas8, "scasb")
MARTLET_REP_COMPARES(scas16, "scasw")
MARTLET_REP_COMPARES(scas32, "scasl")
MARTLET_REP_COMPARES(scas64, "scasq")
static inline __attribute__((always_inline)) uint64_t alu_rep_cmps(const void *_Nonnull left, const void *_Nonnull right, uint64_t count, uint8_t size,
                                                int while_equal, uint16_t *_Nonnull status) {
    switch (size) {
    case 1: return while_equal ? alu_repe_cmps8(left, right, count, 0, status) : alu_repne_cmps8(left, right, count, 0, status);
    case 2: return while_equal ? alu_repe_cmps16(left, right, count, 0, status) : alu_repne_cmps16(left, right, count, 0, status);
    case 4: return while_equal ? alu_repe_cmps32(left, right, count, 0, status) : alu_repne_cmps32(left, right, count, 0, status);
    default: return while_equal ? alu_repe_cmps64(left, right, count, 0, status) : alu_repne_cmps64(left, right, count, 0, status);
    }
}
static inline __attribute__((always_inline)) uint64_t alu_rep_scas(const void *_Nonnull memory, uint64_t value, uint64_t count, uint8_t size,
                                                int while_equal, uint16_t *_Nonnull status) {
    switch (size) {
    case 1: return while_equal ? alu_repe_scas8(memory, memory, count, value, status) : alu_repne_scas8(memory, memory, count, value, status);
    case 2: return while_equal ? alu_repe_scas16(memory, memory, count, value, status) : alu_repne_scas16(memory, memory, count, value, status);
    case 4: return while_equal ? alu_repe_scas32(memory, memory, count, value, status) : alu_repne_scas32(memory, memory, count, value, status);
    default: return while_equal ? alu_repe_scas64(memory, memory, count, value, status) : alu_repne_scas64(memory, memory, count, value, status);
    }
}

static inline __attribute__((always_inline)) void alu_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// CMPXCHG8B / CMPXCHG16B on host memory, atomic. Returns 1 when exchanged.
static inline __attribute__((always_inline)) int alu_cmpxchg8b(void *_Nonnull memory, uint64_t *_Nonnull expected, uint64_t desired) {
    return __atomic_compare_exchange_n((uint64_t *)memory, expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static inline __attribute__((always_inline)) int alu_cmpxchg16b(void *_Nonnull memory, uint64_t *_Nonnull low, uint64_t *_Nonnull high,
                                 uint64_t new_low, uint64_t new_high) {
    uint8_t equal;
    uint64_t a = *low, d = *high;
    __asm__ volatile("lock cmpxchg16b %0\n\tsete %3"
                     : "+m"(*(struct { uint64_t l, h; } *)memory), "+a"(a), "+d"(d), "=q"(equal)
                     : "b"(new_low), "c"(new_high) : "cc", "memory");
    *low = a;
    *high = d;
    return equal;
}
static inline __attribute__((always_inline)) int martlet_compare_exchange32(uint32_t *_Nonnull memory, uint32_t expected, uint32_t desired) {
    return __atomic_compare_exchange_n(memory, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static inline __attribute__((always_inline)) int martlet_compare_exchange64(uint64_t *_Nonnull memory, uint64_t expected, uint64_t desired) {
    return __atomic_compare_exchange_n(memory, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

// TZCNT and LZCNT of 2, 4 or 8 bytes, other flags kept; only where the host has them.
#define MARTLET_COUNT_ZEROS(NAME)                                                                      \
    static inline uint64_t alu_##NAME(uint64_t value, uint8_t size, uint16_t *_Nonnull status) {       \
        uint16_t flags = *status;                                                                      \
        uint64_t result = 0;                                                                           \
        if (size == 2)                                                                                 \
            __asm__(RESTORE #NAME "w %w2, %w0\n\t" CAPTURE : "+r"(result), "+&a"(flags) : "r"(value) : "cc"); \
        else if (size == 4)                                                                            \
            __asm__(RESTORE #NAME "l %k2, %k0\n\t" CAPTURE : "+r"(result), "+&a"(flags) : "r"(value) : "cc"); \
        else                                                                                           \
            __asm__(RESTORE #NAME "q %2, %0\n\t" CAPTURE : "+r"(result), "+&a"(flags) : "r"(value) : "cc");   \
        *status = flags;                                                                               \
        return result;                                                                                 \
    }
MARTLET_COUNT_ZEROS(tzcnt)
MARTLET_COUNT_ZEROS(lzcnt)
#undef MARTLET_COUNT_ZEROS

// ADCX and ADOX of 4 or 8 bytes: CF, or OF, is bit 8, or 0, of the status word.
static inline uint64_t alu_add_carry(uint64_t a, uint64_t b, uint8_t size, uint8_t is_overflow, uint16_t *_Nonnull status) {
    uint16_t bit = is_overflow ? 1 : 1 << 8;
    uint64_t carry = (*status & bit) != 0;
    uint64_t sum;
    uint64_t out;
    if (size == 4) {
        sum = (a & 0xFFFFFFFF) + (b & 0xFFFFFFFF) + carry;
        out = sum >> 32;
        sum &= 0xFFFFFFFF;
    } else {
        unsigned __int128 wide = (unsigned __int128)a + b + carry;
        sum = (uint64_t)wide;
        out = (uint64_t)(wide >> 64);
    }
    *status = (uint16_t)(out ? *status | bit : *status & ~bit);
    return sum;
}

// RDRAND and RDSEED: whether there was a number.
static inline int martlet_host_random(int is_seed, uint64_t *_Nonnull value) {
    unsigned char ok;
    if (is_seed)
        __asm__ volatile("rdseed %0; setc %1" : "=r"(*value), "=qm"(ok) : : "cc");
    else
        __asm__ volatile("rdrand %0; setc %1" : "=r"(*value), "=qm"(ok) : : "cc");
    return ok;
}

static inline __attribute__((always_inline)) void martlet_host_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t *_Nonnull registers) {
    __asm__ volatile("cpuid" : "=a"(registers[0]), "=b"(registers[1]), "=c"(registers[2]), "=d"(registers[3])
                     : "a"(leaf), "c"(subleaf));
}
// XCR0 of the host; only where CPUID says OSXSAVE.
static inline __attribute__((always_inline)) uint64_t martlet_host_xcr0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

#undef CAPTURE
#undef RESTORE
// clang-format on

#endif
