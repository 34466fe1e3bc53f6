// io_uring as Host uses it, by liburing (Debian: liburing-dev). Every function returns -errno where it fails.
#ifndef MARTLET_URING_H
#define MARTLET_URING_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct uring;

struct uring_completion {
    /// What the operation was prepared with.
    uint64_t token;
    /// Bytes, or -errno.
    int32_t result;
};

/// A ring with room for `entries` prepared operations, whose completions make `event`, an eventfd, readable. -ENOSYS
/// also where the kernel's io_uring lacks an operation that is needed.
long uring_create(unsigned entries, int event, struct uring *_Nullable *_Nonnull ring);
/// Nothing may be in flight that uses memory.
void uring_destroy(struct uring *_Nonnull ring);

// MARK: Operations: prepared first, then submitted together. -EBUSY where there is no room: submit first.

/// `pieces` stays as it is until the operation was submitted, what it points to until it has completed.
long uring_prepare_read(struct uring *_Nonnull ring, int fd, const struct iovec *_Nonnull pieces, size_t count,
                        uint64_t offset, uint64_t token);
long uring_prepare_write(struct uring *_Nonnull ring, int fd, const struct iovec *_Nonnull pieces, size_t count,
                         uint64_t offset, uint64_t token);
/// Completes with -ETIME after so many nanoseconds.
long uring_prepare_timer(struct uring *_Nonnull ring, uint64_t nanoseconds, uint64_t token);
/// How many operations are prepared and not submitted.
size_t uring_prepared(const struct uring *_Nonnull ring);
/// One system call. What completes meanwhile does not signal the eventfd: the caller reaps afterwards.
long uring_submit(struct uring *_Nonnull ring);
/// Takes back what is prepared and not submitted, and returns how many `tokens` that were: at most as many as the ring
/// was made for, rounded up to a power of two.
size_t uring_withdraw(struct uring *_Nonnull ring, uint64_t *_Nonnull tokens, size_t limit);

/// Takes up to `limit` completions that are there.
size_t uring_reap(struct uring *_Nonnull ring, struct uring_completion *_Nonnull completions, size_t limit);

#endif
