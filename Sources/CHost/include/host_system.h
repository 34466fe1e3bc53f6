// The Linux ABI that Swift cannot see or must not touch directly: every wrapper returns -errno, captured before any
// Swift runtime call can change it.
#ifndef MARTLET_HOST_SYSTEM_H
#define MARTLET_HOST_SYSTEM_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

static inline long host_ioctl(int fd, unsigned long request, void *_Nullable argument) {
    int result = ioctl(fd, request, argument);
    return result < 0 ? -errno : result;
}

static inline long host_ioctl_value(int fd, unsigned long request, unsigned long argument) {
    int result = ioctl(fd, request, argument);
    return result < 0 ? -errno : result;
}

// MARK: Descriptors

long host_open(const char *_Nonnull path, int flags, unsigned mode);
long host_close(int fd);
long host_read(int fd, void *_Nonnull buffer, size_t count);
long host_pread(int fd, void *_Nonnull buffer, size_t count, uint64_t offset);
long host_write(int fd, const void *_Nonnull buffer, size_t count);
long host_set_nonblocking(int fd, int on);
/// The size of a regular file; -EISDIR for a directory, -EINVAL for anything else.
long host_regular_file_size(int fd);
long host_eventfd(void);
/// A second descriptor of the same open file, closed on exec.
long host_duplicate(int fd);

// MARK: Memory shared with a guest

/// Gives pages of an anonymous mapping back to the host; they read as zeroes afterwards (MADV_DONTNEED).
long host_release_pages(void *_Nonnull start, size_t count);
/// Copies `count` bytes, a multiple of 4096, but passes over pages of zeroes: the target's are zero already, and stay
/// without memory.
void host_copy_used_pages(void *_Nonnull target, const void *_Nonnull source, size_t count);

// Ring indexes and flags, which the guest's processors read and write at the same time.
static inline uint16_t host_load_acquire_16(const void *_Nonnull address) {
    return __atomic_load_n((const uint16_t *)address, __ATOMIC_ACQUIRE);
}
static inline void host_store_release_16(void *_Nonnull address, uint16_t value) {
    __atomic_store_n((uint16_t *)address, value, __ATOMIC_RELEASE);
}

/// ppoll with a relative timeout; a negative one waits for ever.
long host_poll(struct pollfd *_Nonnull set, size_t count, int64_t timeout_ns);

// MARK: Signals and threads

/// The signal that does nothing except make a blocking system call return EINTR.
int host_kick_signal(void);
/// Installs the kick's empty handler, without SA_RESTART, once for the process.
void host_install_kick_handler(void);
int host_thread_id(void);
/// Kicks one thread of this process; harmless when it has ended.
void host_kick_thread(int tid);
void host_name_thread(const char *_Nonnull name);
/// Blocks, in the calling thread, every signal except the kick and those that the thread's own faults raise.
void host_block_signals(void);
/// Starts a joinable thread with the signals blocked as above. `*handle` is for host_thread_join.
long host_thread_start(size_t stack_size, void *_Nullable (*_Nonnull body)(void *_Nullable), void *_Nullable argument,
                       unsigned long *_Nonnull handle);
long host_thread_join(unsigned long handle);
/// A signalfd (non-blocking) for `count` signals, which become blocked in the calling thread.
long host_signalfd(const int *_Nonnull signals, size_t count);
void host_ignore_signal(int signal);

// MARK: Time

uint64_t host_monotonic_ns(void);
uint64_t host_realtime_ns(void);
void host_sleep_until(uint64_t monotonic_ns);
/// A CLOCK_MONOTONIC timer that kicks thread `tid`. The timer's number goes to `*timer`.
long host_timer_create(int tid, long *_Nonnull timer);
/// Arms at an absolute time (0 disarms), then every `interval_ns` if that is not 0.
long host_timer_set(long timer, uint64_t monotonic_ns, uint64_t interval_ns);
void host_timer_delete(long timer);
/// FUTEX_WAIT until `*word != expected`, a wake, or the absolute time (UINT64_MAX: never). 0 or -errno.
long host_futex_wait(uint32_t *_Nonnull word, uint32_t expected, uint64_t monotonic_ns);
long host_futex_wake(uint32_t *_Nonnull word, int count);

// MARK: Terminal

/// Saves the terminal's settings and makes it raw. Until host_terminal_restore, an exit or a fatal signal restores it.
long host_terminal_make_raw(int fd);
/// Raw again, with the settings saved before (after a stop and continue).
long host_terminal_remake_raw(void);
void host_terminal_restore(void);
long host_terminal_size(int fd, int *_Nonnull columns, int *_Nonnull rows);

// MARK: Facts

void host_memory(uint64_t *_Nonnull total, uint64_t *_Nonnull free);
long host_online_processors(void);
/// How many bytes of a page-aligned mapping are in memory (mincore(2)). 0 where the host does not tell.
size_t host_resident_size(const void *_Nonnull start, size_t size);
long host_random(void *_Nonnull buffer, size_t count);

// MARK: AddressSanitizer

/// Under AddressSanitizer: instrumented code must not touch this part of a mapping that is cut up by ourselves, or may
/// again. Nothing otherwise.
void host_poison(const void *_Nonnull start, size_t size);
void host_unpoison(const void *_Nonnull start, size_t size);

#endif
