// Rows of floating point: scalar in SSE2, and the product of two matrices in SSE and in AVX. Only operations whose
// result IEEE 754 defines to the last bit, in a fixed order, so that the checksums are the same everywhere.
#include "bench.h"

#include <immintrin.h>
#include <string.h>

// --- nbody: gravity between five bodies, with a square root and a division for each pair ----------------------------------------

enum { bodies = 5, nbody_steps = 2000 };

struct body {
    double x, y, z, vx, vy, vz, mass;
};

static double square_root(double x) { return _mm_cvtsd_f64(_mm_sqrt_sd(_mm_set_sd(x), _mm_set_sd(x))); }

static void attract(struct body *a, struct body *b, double dt) {
    double dx = a->x - b->x, dy = a->y - b->y, dz = a->z - b->z;
    double square = dx * dx + dy * dy + dz * dz;
    double magnitude = dt / (square * square_root(square));
    double to_a = b->mass * magnitude, to_b = a->mass * magnitude;
    a->vx -= dx * to_a, a->vy -= dy * to_a, a->vz -= dz * to_a;
    b->vx += dx * to_b, b->vy += dy * to_b, b->vz += dz * to_b;
}

static uint64_t nbody_unit(void) {
    static struct body system[bodies];
    uint64_t checksum = 0;
    for (int i = 0; i < bodies; i++) {
        system[i] = (struct body){.x = 1.5 * i, .y = 0.25 * i * i - 1, .z = 0.125 * i, .vx = 0.01 * i - 0.02,
                                  .vy = 0.3 - 0.1 * i, .vz = 0.005 * i, .mass = i == 0 ? 1 : 0.001 * i};
    }
    for (int step = 0; step < nbody_steps; step++) {
        for (int i = 0; i < bodies; i++) {
            for (int j = i + 1; j < bodies; j++) attract(&system[i], &system[j], 0.001);
        }
        for (int i = 0; i < bodies; i++) {
            struct body *body = &system[i];
            body->x += 0.001 * body->vx, body->y += 0.001 * body->vy, body->z += 0.001 * body->vz;
        }
    }
    for (int i = 0; i < bodies; i++) {
        uint64_t bits;
        memcpy(&bits, &system[i].x, sizeof bits);
        checksum = mix(checksum, bits);
    }
    return checksum;
}

// --- sgemm: c = a · b ----------------------------------------------------------------------------------------------------------------

enum { matrix_size = 96, multiplications = matrix_size * matrix_size * matrix_size };

static float a[matrix_size][matrix_size] __attribute__((aligned(32)));
static float b[matrix_size][matrix_size] __attribute__((aligned(32)));
static float c[matrix_size][matrix_size] __attribute__((aligned(32)));

static bool sgemm_prepare(void) {
    uint64_t state = 5;
    for (int i = 0; i < matrix_size; i++) {
        for (int j = 0; j < matrix_size; j++) {
            a[i][j] = (float)(next_random(&state) >> 56) / 64 - 2;
            b[i][j] = (float)(next_random(&state) >> 56) / 128 - 1;
        }
    }
    return true;
}

static uint64_t sgemm_checksum(void) {
    uint64_t checksum = 0;
    for (int i = 0; i < matrix_size; i += 5) {
        uint32_t bits;
        memcpy(&bits, &c[i][i * 7 % matrix_size], sizeof bits);
        checksum = mix(checksum, bits);
    }
    return checksum;
}

/// Four rows by eight columns at a time, in eight registers.
static uint64_t sgemm_sse_unit(void) {
    for (int i = 0; i < matrix_size; i += 4) {
        for (int j = 0; j < matrix_size; j += 8) {
            __m128 sum[4][2];
            for (int r = 0; r < 4; r++) sum[r][0] = sum[r][1] = _mm_setzero_ps();
            for (int k = 0; k < matrix_size; k++) {
                __m128 b0 = _mm_load_ps(&b[k][j]), b1 = _mm_load_ps(&b[k][j + 4]);
#pragma GCC unroll 4
                for (int r = 0; r < 4; r++) {
                    __m128 factor = _mm_set1_ps(a[i + r][k]);
                    sum[r][0] = _mm_add_ps(sum[r][0], _mm_mul_ps(factor, b0));
                    sum[r][1] = _mm_add_ps(sum[r][1], _mm_mul_ps(factor, b1));
                }
            }
            for (int r = 0; r < 4; r++) {
                _mm_store_ps(&c[i + r][j], sum[r][0]);
                _mm_store_ps(&c[i + r][j + 4], sum[r][1]);
            }
        }
    }
    return sgemm_checksum();
}

static bool sgemm_avx_prepare(void) {
    // Asks the operating system's side too (OSXSAVE and XCR0).
    return __builtin_cpu_supports("avx") && sgemm_prepare();
}

/// Four rows by sixteen columns at a time, in eight registers. No fused multiply-add: it rounds differently.
__attribute__((target("avx"))) static uint64_t sgemm_avx_unit(void) {
    for (int i = 0; i < matrix_size; i += 4) {
        for (int j = 0; j < matrix_size; j += 16) {
            __m256 sum[4][2];
            for (int r = 0; r < 4; r++) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
            for (int k = 0; k < matrix_size; k++) {
                __m256 b0 = _mm256_load_ps(&b[k][j]), b1 = _mm256_load_ps(&b[k][j + 8]);
#pragma GCC unroll 4
                for (int r = 0; r < 4; r++) {
                    __m256 factor = _mm256_broadcast_ss(&a[i + r][k]);
                    sum[r][0] = _mm256_add_ps(sum[r][0], _mm256_mul_ps(factor, b0));
                    sum[r][1] = _mm256_add_ps(sum[r][1], _mm256_mul_ps(factor, b1));
                }
            }
            for (int r = 0; r < 4; r++) {
                _mm256_store_ps(&c[i + r][j], sum[r][0]);
                _mm256_store_ps(&c[i + r][j + 8], sum[r][1]);
            }
        }
    }
    return sgemm_checksum();
}

const struct row vector_rows[] = {
    {.name = "nbody", .operation = "step", .operations = nbody_steps, .unit = nbody_unit},
    {.name = "sgemm-sse", .operation = "multiplication", .operations = multiplications, .unit = sgemm_sse_unit,
     .prepare = sgemm_prepare},
    {.name = "sgemm-avx", .operation = "multiplication", .operations = multiplications, .unit = sgemm_avx_unit,
     .prepare = sgemm_avx_prepare},
    {0},
};
