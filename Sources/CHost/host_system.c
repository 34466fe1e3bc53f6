#define _GNU_SOURCE
#include "host_system.h"

#include <pthread.h>
#include <linux/futex.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <termios.h>
#include <time.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#define HAS_ADDRESS_SANITIZER 1
#endif
#endif

#define NANOSECONDS 1000000000ull

static long result_or_errno(long result) { return result < 0 ? -errno : result; }

static struct timespec timespec_of(uint64_t ns) {
    return (struct timespec){.tv_sec = (time_t)(ns / NANOSECONDS), .tv_nsec = (long)(ns % NANOSECONDS)};
}

// MARK: Descriptors

long host_open(const char *path, int flags, unsigned mode) {
    return result_or_errno(open(path, flags | O_CLOEXEC, mode));
}

long host_close(int fd) { return result_or_errno(close(fd)); }

long host_read(int fd, void *buffer, size_t count) { return result_or_errno(read(fd, buffer, count)); }

long host_pread(int fd, void *buffer, size_t count, uint64_t offset) {
    if (offset > INT64_MAX) return -EINVAL;
    return result_or_errno(pread(fd, buffer, count, (off_t)offset));
}

long host_write(int fd, const void *buffer, size_t count) { return result_or_errno(write(fd, buffer, count)); }

long host_set_nonblocking(int fd, int on) {
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0) return -errno;
    return result_or_errno(fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK));
}

long host_regular_file_size(int fd) {
    struct stat status;
    if (fstat(fd, &status) < 0) return -errno;
    if (S_ISDIR(status.st_mode)) return -EISDIR;
    return S_ISREG(status.st_mode) ? status.st_size : -EINVAL;
}

long host_duplicate(int fd) { return result_or_errno(fcntl(fd, F_DUPFD_CLOEXEC, 0)); }

long host_eventfd(void) { return result_or_errno(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }

void host_copy_used_pages(void *target, const void *source, size_t count) {
    static const unsigned char zeroes[4096];
    for (size_t offset = 0; offset < count; offset += sizeof zeroes) {
        const char *page = (const char *)source + offset;
        if (memcmp(page, zeroes, sizeof zeroes) != 0) memcpy((char *)target + offset, page, sizeof zeroes);
    }
}

long host_release_pages(void *start, size_t count) { return result_or_errno(madvise(start, count, MADV_DONTNEED)); }

long host_poll(struct pollfd *set, size_t count, int64_t timeout_ns) {
    struct timespec timeout = timespec_of(timeout_ns < 0 ? 0 : (uint64_t)timeout_ns);
    return result_or_errno(ppoll(set, count, timeout_ns < 0 ? NULL : &timeout, NULL));
}

// MARK: Signals and threads

int host_kick_signal(void) { return SIGRTMIN; }

static void do_nothing(int signal) { (void)signal; }

static void install_kick_handler(void) {
    struct sigaction action = {.sa_handler = do_nothing};
    sigemptyset(&action.sa_mask);
    sigaction(host_kick_signal(), &action, NULL);
}

void host_install_kick_handler(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install_kick_handler);
    // A thread may have inherited a mask that blocks it.
    sigset_t kick;
    sigemptyset(&kick);
    sigaddset(&kick, host_kick_signal());
    pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
}

int host_thread_id(void) { return (int)syscall(SYS_gettid); }

// tgkill, not pthread_kill: a pthread_t of an ended thread must not be used, a thread number may.
void host_kick_thread(int tid) { syscall(SYS_tgkill, getpid(), tid, host_kick_signal()); }

void host_name_thread(const char *name) {
    char shortened[16];  // the kernel's TASK_COMM_LEN
    strncpy(shortened, name, sizeof shortened - 1);
    shortened[sizeof shortened - 1] = 0;
    pthread_setname_np(pthread_self(), shortened);
}

static sigset_t blocked_in_threads(void) {
    static const int open_signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS};
    sigset_t set;
    sigfillset(&set);
    for (size_t index = 0; index < sizeof open_signals / sizeof *open_signals; index++)
        sigdelset(&set, open_signals[index]);
    sigdelset(&set, host_kick_signal());
    return set;
}

void host_block_signals(void) {
    sigset_t set = blocked_in_threads();
    pthread_sigmask(SIG_SETMASK, &set, NULL);
}

long host_thread_start(size_t stack_size, void *(*body)(void *), void *argument, unsigned long *handle) {
    host_install_kick_handler();
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error) return -error;
    error = pthread_attr_setstacksize(&attributes, stack_size);
    // The new thread inherits the creator's mask: set it before it exists, so that no signal finds it unprepared.
    sigset_t blocked = blocked_in_threads(), before;
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    pthread_t thread;
    if (!error) error = pthread_create(&thread, &attributes, body, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (error) return -error;
    *handle = thread;
    return 0;
}

long host_thread_join(unsigned long handle) { return -pthread_join((pthread_t)handle, NULL); }

long host_signalfd(const int *signals, size_t count) {
    sigset_t set;
    sigemptyset(&set);
    for (size_t index = 0; index < count; index++) sigaddset(&set, signals[index]);
    int error = pthread_sigmask(SIG_BLOCK, &set, NULL);
    if (error) return -error;
    return result_or_errno(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

void host_ignore_signal(int number) { signal(number, SIG_IGN); }

// MARK: Time

static uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * NANOSECONDS + (uint64_t)now.tv_nsec;
}

uint64_t host_monotonic_ns(void) { return clock_ns(CLOCK_MONOTONIC); }
uint64_t host_realtime_ns(void) { return clock_ns(CLOCK_REALTIME); }

void host_sleep_until(uint64_t monotonic_ns) {
    struct timespec until = timespec_of(monotonic_ns);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
    }
}

// The kernel's own timers: glibc's timer_t is a pointer, which Swift would not let cross threads as a plain number.
long host_timer_create(int tid, long *timer) {
    host_install_kick_handler();
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = host_kick_signal();
    event._sigev_un._tid = tid;
    int number = 0;
    if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &number) < 0) return -errno;
    *timer = number;
    return 0;
}

long host_timer_set(long timer, uint64_t monotonic_ns, uint64_t interval_ns) {
    struct itimerspec setting = {.it_value = timespec_of(monotonic_ns), .it_interval = timespec_of(interval_ns)};
    return result_or_errno(syscall(SYS_timer_settime, (int)timer, TIMER_ABSTIME, &setting, NULL));
}

void host_timer_delete(long timer) { syscall(SYS_timer_delete, (int)timer); }

long host_futex_wait(uint32_t *word, uint32_t expected, uint64_t monotonic_ns) {
    // FUTEX_WAIT_BITSET, because its timeout is absolute: no drift when a wait is repeated (futex(2)).
    struct timespec until = timespec_of(monotonic_ns);
    return result_or_errno(syscall(SYS_futex, word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, expected,
                                   monotonic_ns == UINT64_MAX ? NULL : &until, NULL, FUTEX_BITSET_MATCH_ANY));
}

long host_futex_wake(uint32_t *word, int count) {
    return result_or_errno(syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, count, NULL, NULL, 0));
}

// MARK: Terminal

static struct termios saved_settings;
static _Atomic int raw_terminal = -1;

static const int fatal_signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS,
                                    SIGINT,  SIGTERM, SIGHUP, SIGQUIT};
#define FATAL_SIGNALS (sizeof fatal_signals / sizeof *fatal_signals)
static struct sigaction former_actions[FATAL_SIGNALS];

// tcsetattr is async-signal-safe (POSIX 2.4.3); so is everything else that the handler below calls.
void host_terminal_restore(void) {
    int fd = atomic_exchange(&raw_terminal, -1);
    if (fd < 0) return;
    int before = errno;
    tcsetattr(fd, TCSANOW, &saved_settings);
    errno = before;
}

// Restores the terminal, then gives the signal to whoever would have had it: a fault happens again when this returns,
// anything else is sent again and stays pending until then.
static void restore_and_pass_on(int number, siginfo_t *info, void *context) {
    (void)context;
    host_terminal_restore();
    for (size_t index = 0; index < FATAL_SIGNALS; index++)
        if (fatal_signals[index] == number) sigaction(number, &former_actions[index], NULL);
    int is_fault = info->si_code > 0 && info->si_code != SI_KERNEL && number != SIGTRAP;
    if (!is_fault) raise(number);
}

static void restore_at_exit(void) { atexit(host_terminal_restore); }

// Each time the terminal becomes raw: whoever set a handler since then becomes the one to pass the signal on to.
static void install_last_resort(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, restore_at_exit);
    struct sigaction action = {.sa_sigaction = restore_and_pass_on, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    for (size_t index = 0; index < FATAL_SIGNALS; index++) {
        struct sigaction former;
        sigaction(fatal_signals[index], NULL, &former);
        int is_ours = (former.sa_flags & SA_SIGINFO) && former.sa_sigaction == restore_and_pass_on;
        int is_ignored = !(former.sa_flags & SA_SIGINFO) && former.sa_handler == SIG_IGN;
        if (is_ours || is_ignored) continue;
        former_actions[index] = former;
        sigaction(fatal_signals[index], &action, NULL);
    }
}

static long make_raw(int fd) {
    struct termios raw = saved_settings;
    cfmakeraw(&raw);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    return result_or_errno(tcsetattr(fd, TCSANOW, &raw));
}

static _Atomic int last_terminal = -1;

long host_terminal_make_raw(int fd) {
    if (atomic_load(&raw_terminal) >= 0) return -EBUSY;
    if (tcgetattr(fd, &saved_settings) < 0) return -errno;
    install_last_resort();
    atomic_store(&last_terminal, fd);
    atomic_store(&raw_terminal, fd);
    long result = make_raw(fd);
    if (result < 0) atomic_store(&raw_terminal, -1);
    return result;
}

long host_terminal_remake_raw(void) {
    int fd = atomic_load(&last_terminal);
    if (fd < 0) return -ENOTTY;
    atomic_store(&raw_terminal, fd);
    return make_raw(fd);
}

long host_terminal_size(int fd, int *columns, int *rows) {
    struct winsize size;
    if (ioctl(fd, TIOCGWINSZ, &size) < 0) return -errno;
    *columns = size.ws_col;
    *rows = size.ws_row;
    return 0;
}

// MARK: Facts

void host_memory(uint64_t *total, uint64_t *free) {
    struct sysinfo info;
    *total = *free = 0;
    if (sysinfo(&info) < 0) return;
    *total = (uint64_t)info.totalram * info.mem_unit;
    *free = ((uint64_t)info.freeram + info.bufferram) * info.mem_unit;
}

long host_online_processors(void) {
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? count : 1;
}

size_t host_resident_size(const void *start, size_t size) {
    enum { CHUNK = 1024 };
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char present[CHUNK];
    size_t result = 0;
    for (size_t done = 0; done < size; done += CHUNK * page) {
        size_t count = size - done < CHUNK * page ? size - done : CHUNK * page;
        if (mincore((char *)start + done, count, present) < 0) return result;
        for (size_t index = 0; index * page < count; index++)
            if (present[index] & 1) result += page;
    }
    return result;
}

long host_random(void *buffer, size_t count) { return result_or_errno(getrandom(buffer, count, 0)); }

// MARK: AddressSanitizer

void host_poison(const void *start, size_t size) {
#ifdef HAS_ADDRESS_SANITIZER
    __asan_poison_memory_region(start, size);
#else
    (void)start, (void)size;
#endif
}

void host_unpoison(const void *start, size_t size) {
#ifdef HAS_ADDRESS_SANITIZER
    __asan_unpoison_memory_region(start, size);
#else
    (void)start, (void)size;
#endif
}
