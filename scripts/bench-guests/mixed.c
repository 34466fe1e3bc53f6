// The row of mixed code, of the kinds that a small embedded program is made of: a linked list that is searched, turned
// round and sorted, matrices of 16-bit integers, a state machine over text, and a CRC over all results.
#include "bench.h"

#include <string.h>

// --- CRC-16/ARC, bit by bit -----------------------------------------------------------------------------------------------

static uint16_t crc_byte(uint8_t byte, uint16_t crc) {
    for (int bit = 0; bit < 8; bit++, byte >>= 1) {
        bool carry = (byte ^ crc) & 1;
        crc >>= 1;
        if (carry) crc ^= 0xa001;
    }
    return crc;
}

static uint16_t crc_word(uint16_t word, uint16_t crc) { return crc_byte((uint8_t)(word >> 8), crc_byte((uint8_t)word, crc)); }

static uint16_t crc_long(uint32_t word, uint16_t crc) {
    return crc_word((uint16_t)(word >> 16), crc_word((uint16_t)word, crc));
}

// --- a list -----------------------------------------------------------------------------------------------------------------

enum { list_length = 64 };

struct node {
    struct node *next;
    int16_t key, value;
};

static struct node nodes[list_length];

/// The nodes in an order of memory that is not the list's.
static struct node *make_list(void) {
    struct node *first = NULL;
    for (int i = 0; i < list_length; i++) {
        struct node *node = &nodes[i * 29 % list_length];
        *node = (struct node){.next = first, .key = (int16_t)(i * 37 % 101), .value = (int16_t)(i ^ 0x55)};
        first = node;
    }
    return first;
}

static struct node *reversed(struct node *list) {
    struct node *result = NULL;
    while (list) {
        struct node *next = list->next;
        list->next = result;
        result = list;
        list = next;
    }
    return result;
}

static struct node *find(struct node *list, int16_t key) {
    while (list && list->key != key) list = list->next;
    return list;
}

static int by_key(const struct node *a, const struct node *b) { return a->key - b->key; }
static int by_value(const struct node *a, const struct node *b) { return a->value - b->value; }

/// Merges runs of growing length in place, without recursion.
__attribute__((noipa)) static struct node *sorted(struct node *list, int (*compare)(const struct node *, const struct node *)) {
    for (int length = 1;; length *= 2) {
        struct node *left = list, *first = NULL, **last = &first;
        int merges = 0;
        while (left) {
            struct node *right = left;
            int left_count = 0, right_count = length;
            while (right && left_count < length) right = right->next, left_count++;
            merges++;
            while (left_count > 0 || (right_count > 0 && right)) {
                bool takes_left = left_count > 0 && (right_count == 0 || !right || compare(left, right) <= 0);
                struct node **from = takes_left ? &left : &right;
                *last = *from;
                last = &(*from)->next;
                *from = (*from)->next;
                if (takes_left) left_count--;
                else right_count--;
            }
            left = right;
        }
        *last = NULL;
        list = first;
        if (merges <= 1) return list;
    }
}

static uint16_t list_work(uint16_t crc) {
    struct node *list = make_list();
    for (int16_t key = 0; key < 10; key++) {
        struct node *found = find(list, (int16_t)(key * 9));
        list = reversed(list);
        crc = crc_word((uint16_t)(found ? found->value : key), crc);
    }
    list = sorted(list, by_key);
    for (struct node *node = list; node; node = node->next) crc = crc_word((uint16_t)node->value, crc);
    list = sorted(list, by_value);
    return crc_word((uint16_t)list->key, crc);
}

// --- matrices -----------------------------------------------------------------------------------------------------------------

enum { matrix_size = 12 };

static int16_t left[matrix_size][matrix_size], right[matrix_size][matrix_size];
static int32_t product[matrix_size][matrix_size];

static void fill_matrices(int seed) {
    for (int i = 0; i < matrix_size; i++) {
        for (int j = 0; j < matrix_size; j++) {
            seed = (seed * 133 + 7) % 65536;
            left[i][j] = (int16_t)(seed & 0x3ff);
            right[i][j] = (int16_t)(seed >> 4 & 0x3ff);
        }
    }
}

static void multiply(void) {
    for (int i = 0; i < matrix_size; i++) {
        for (int j = 0; j < matrix_size; j++) {
            int32_t sum = 0;
            for (int k = 0; k < matrix_size; k++) sum += left[i][k] * right[k][j];
            product[i][j] = sum;
        }
    }
}

static void multiply_bits(void) {
    for (int i = 0; i < matrix_size; i++) {
        for (int j = 0; j < matrix_size; j++) {
            int32_t sum = 0;
            for (int k = 0; k < matrix_size; k++) {
                int32_t term = left[i][k] * right[k][j];
                sum += (term >> 2 & 15) * (term >> 5 & 127);
            }
            product[i][j] = sum;
        }
    }
}

/// A walk over the product whose branches depend on it.
static int16_t clip_sum(int32_t limit) {
    int32_t sum = 0, previous = 0;
    int16_t result = 0;
    for (int i = 0; i < matrix_size; i++) {
        for (int j = 0; j < matrix_size; j++) {
            int32_t current = product[i][j];
            sum += current;
            if (sum > limit) {
                result = (int16_t)(result + 10);
                sum = 0;
            } else {
                result = (int16_t)(result + (current > previous));
            }
            previous = current;
        }
    }
    return result;
}

static uint16_t matrix_work(uint16_t crc) {
    fill_matrices(crc);
    for (int i = 0; i < matrix_size; i++) {
        for (int j = 0; j < matrix_size; j++) left[i][j] = (int16_t)(left[i][j] + 3);
    }
    multiply();
    crc = crc_word((uint16_t)clip_sum(1 << 22), crc);
    multiply_bits();
    return crc_word((uint16_t)clip_sum(1 << 12), crc);
}

// --- a state machine ------------------------------------------------------------------------------------------------------------

enum state { at_start, in_sign, in_integer, after_point, in_exponent_sign, in_exponent, in_word, invalid, states };

static const char text[] =
    "5012,1234,-874,+122,35.54400,.1234500,-110.700,+0.64400,5.500e+3,-.123e-2,-87e+832,+0.6e-12,T0.3e-1F,-T.T++Tq,"
    "1T3.4e4z,34.0e-T^,word,more.words,7,-,+e5,9e,0x,12e+,1.2.3";

static inline bool is_digit(char c) { return c >= '0' && c <= '9'; }

static enum state next_state(enum state state, char c) {
    switch (state) {
    case at_start:
        if (is_digit(c)) return in_integer;
        if (c == '+' || c == '-') return in_sign;
        if (c == '.') return after_point;
        return c >= 'a' && c <= 'z' ? in_word : invalid;
    case in_sign:
        return is_digit(c) ? in_integer : c == '.' ? after_point : invalid;
    case in_integer:
        if (c == '.') return after_point;
        return is_digit(c) ? in_integer : c == 'e' ? in_exponent_sign : invalid;
    case after_point:
        return is_digit(c) ? after_point : c == 'e' ? in_exponent_sign : invalid;
    case in_exponent_sign:
        return is_digit(c) || c == '+' || c == '-' ? in_exponent : invalid;
    case in_exponent:
        return is_digit(c) ? in_exponent : invalid;
    case in_word:
        return c >= 'a' && c <= 'z' ? in_word : invalid;
    default:
        return invalid;
    }
}

static uint16_t state_work(uint16_t crc) {
    static char input[sizeof text];
    uint32_t finals[states] = {0}, transitions[states] = {0};
    memcpy(input, text, sizeof text);
    for (int round = 0; round < 8; round++) {
        enum state state = at_start;
        for (const char *c = input; *c; c++) {
            if (*c == ',') {
                finals[state]++;
                state = at_start;
                continue;
            }
            enum state next = next_state(state, *c);
            transitions[state] += next != state;
            state = next;
        }
        finals[state]++;
        // Every second round reads damaged text.
        for (size_t i = 0; i < sizeof input - 1; i += 11) {
            if (input[i] != ',') input[i] ^= 0x11;
        }
    }
    for (int i = 0; i < states; i++) crc = crc_long(finals[i], crc_long(transitions[i], crc));
    return crc;
}

static uint64_t mixed_unit(void) {
    uint16_t crc = 0;
    for (int i = 0; i < 3; i++) crc = state_work(matrix_work(list_work(crc)));
    return crc;
}

const struct row mixed_rows[] = {
    {.name = "mixed", .operation = "iteration", .operations = 3, .unit = mixed_unit},
    {0},
};
