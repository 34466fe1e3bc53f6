#define _GNU_SOURCE
#include "uring.h"

#include <errno.h>
#include <liburing.h>
#include <limits.h>
#include <stdlib.h>

struct uring {
    struct io_uring ring;
    /// One for each entry of the submission queue, since the kernel reads it when it submits.
    struct __kernel_timespec *times;
};

static const int needed_operations[] = {IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READV, IORING_OP_WRITEV,
                                        IORING_OP_TIMEOUT};

static int has_operations(struct io_uring *ring) {
    struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
    int result = probe != NULL;
    for (size_t index = 0; result && index < sizeof needed_operations / sizeof *needed_operations; index++)
        result = io_uring_opcode_supported(probe, needed_operations[index]);
    io_uring_free_probe(probe);
    return result;
}

static int initialize(struct io_uring *ring, unsigned entries, int event) {
    // Linux 5.18: one operation that cannot be does not hold up those behind it.
    struct io_uring_params parameters = {.flags = IORING_SETUP_SUBMIT_ALL};
    int result = io_uring_queue_init_params(entries, ring, &parameters);
    if (result == -EINVAL) {
        parameters = (struct io_uring_params){0};
        result = io_uring_queue_init_params(entries, ring, &parameters);
    }
    if (result < 0) return result;
    // No completion is lost (Linux 5.5).
    result = parameters.features & IORING_FEAT_NODROP && has_operations(ring) ? 0 : -ENOSYS;
    if (!result) result = io_uring_register_eventfd(ring, event);
    if (result < 0) io_uring_queue_exit(ring);
    return result;
}

long uring_create(unsigned entries, int event, struct uring **target) {
    struct uring *ring = calloc(1, sizeof *ring);
    if (!ring) return -ENOMEM;
    int result = initialize(&ring->ring, entries, event);
    if (!result) {
        ring->times = calloc(*ring->ring.sq.kring_entries, sizeof *ring->times);
        if (ring->times) {
            // A child process has no use for it.
            io_uring_ring_dontfork(&ring->ring);
            *target = ring;
            return 0;
        }
        io_uring_queue_exit(&ring->ring);
        result = -ENOMEM;
    }
    free(ring);
    return result;
}

void uring_destroy(struct uring *ring) {
    io_uring_queue_exit(&ring->ring);
    free(ring->times);
    free(ring);
}

/// One piece needs no vector that the kernel would have to copy.
static long prepare(struct uring *ring, int is_write, int fd, const struct iovec *pieces, size_t count,
                    uint64_t offset, uint64_t token) {
    struct io_uring_sqe *entry = io_uring_get_sqe(&ring->ring);
    if (!entry) return -EBUSY;
    if (count == 1) {
        unsigned size = (unsigned)(pieces->iov_len > (1u << 30) ? 1u << 30 : pieces->iov_len);
        if (is_write)
            io_uring_prep_write(entry, fd, pieces->iov_base, size, offset);
        else
            io_uring_prep_read(entry, fd, pieces->iov_base, size, offset);
    } else {
        unsigned vectors = (unsigned)(count > IOV_MAX ? IOV_MAX : count);
        if (is_write)
            io_uring_prep_writev(entry, fd, pieces, vectors, offset);
        else
            io_uring_prep_readv(entry, fd, pieces, vectors, offset);
    }
    io_uring_sqe_set_data64(entry, token);
    return 0;
}

long uring_prepare_read(struct uring *ring, int fd, const struct iovec *pieces, size_t count, uint64_t offset,
                        uint64_t token) {
    return prepare(ring, 0, fd, pieces, count, offset, token);
}

long uring_prepare_write(struct uring *ring, int fd, const struct iovec *pieces, size_t count, uint64_t offset,
                         uint64_t token) {
    return prepare(ring, 1, fd, pieces, count, offset, token);
}

long uring_prepare_timer(struct uring *ring, uint64_t nanoseconds, uint64_t token) {
    struct io_uring_sqe *entry = io_uring_get_sqe(&ring->ring);
    if (!entry) return -EBUSY;
    struct __kernel_timespec *time = &ring->times[entry - ring->ring.sq.sqes];
    time->tv_sec = (int64_t)(nanoseconds / 1000000000);
    time->tv_nsec = (long long)(nanoseconds % 1000000000);
    io_uring_prep_timeout(entry, time, 0, 0);
    io_uring_sqe_set_data64(entry, token);
    return 0;
}

size_t uring_prepared(const struct uring *ring) { return io_uring_sq_ready(&ring->ring); }

long uring_submit(struct uring *ring) {
    // Before Linux 5.8 this cannot be, and the eventfd is signalled in vain.
    io_uring_cq_eventfd_toggle(&ring->ring, false);
    int result = io_uring_submit(&ring->ring);
    io_uring_cq_eventfd_toggle(&ring->ring, true);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return result;
}

size_t uring_withdraw(struct uring *ring, uint64_t *tokens, size_t limit) {
    struct io_uring_sq *queue = &ring->ring.sq;
    unsigned head = __atomic_load_n(queue->khead, __ATOMIC_ACQUIRE);
    size_t count = 0;
    for (unsigned position = head; position != queue->sqe_tail && count < limit; position++)
        tokens[count++] = queue->sqes[position & *queue->kring_mask].user_data;
    // The kernel looks at the tail only when something is submitted (no IORING_SETUP_SQPOLL).
    queue->sqe_head = queue->sqe_tail = head;
    __atomic_store_n(queue->ktail, head, __ATOMIC_RELEASE);
    return count;
}

size_t uring_reap(struct uring *ring, struct uring_completion *completions, size_t limit) {
    struct io_uring_cqe *entries[64];
    unsigned wanted = (unsigned)(limit < 64 ? limit : 64);
    unsigned count = io_uring_peek_batch_cqe(&ring->ring, entries, wanted);
    for (unsigned index = 0; index < count; index++) {
        completions[index].token = io_uring_cqe_get_data64(entries[index]);
        completions[index].result = entries[index]->res;
    }
    io_uring_cq_advance(&ring->ring, count);
    return count;
}
