// Rows in which the kernel does the work: system calls, page faults, mappings, processes, pipes, signals.
#include "bench.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

// --- syscall: getppid, which does nothing but look into a structure --------------------------------------------------------------

enum { system_calls = 500 };

static uint64_t syscall_unit(void) {
    long parent = syscall(SYS_getppid);
    uint64_t same = 0;
    for (int i = 1; i < system_calls; i++) same += syscall(SYS_getppid) == parent;
    return same;
}

// --- fault, mmap -----------------------------------------------------------------------------------------------------------------------

enum { page_size = 4096, fault_pages = 128, mappings = 32 };

static uint8_t *map(size_t size) {
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) give_up("mmap");
    return memory;
}

/// The first write to each page of new memory, and its end.
static uint64_t fault_unit(void) {
    uint8_t *memory = map(fault_pages * page_size);
    uint64_t checksum = 0;
    for (int i = 0; i < fault_pages; i++) {
        uint8_t *byte = memory + i * page_size + i * 8;
        // Adds: new memory is zero.
        *byte = (uint8_t)(*byte + i);
        checksum = mix(checksum, *byte);
    }
    if (munmap(memory, fault_pages * page_size) != 0) give_up("munmap");
    return checksum;
}

static uint64_t mmap_unit(void) {
    uint64_t count = 0;
    for (int i = 0; i < mappings; i++) {
        uint8_t *memory = map(16 * page_size);
        count += ((uintptr_t)memory & (page_size - 1)) == 0;
        if (munmap(memory, 16 * page_size) != 0) give_up("munmap");
    }
    return count;
}

// --- fork-exit, fork-exec ----------------------------------------------------------------------------------------------------------------

static char own_path[512];

static bool exec_prepare(void) {
    ssize_t length = readlink("/proc/self/exe", own_path, sizeof own_path - 1);
    if (length <= 0) give_up("readlink /proc/self/exe");
    return true;
}

static uint64_t status_of(pid_t child) {
    int status;
    if (child < 0) give_up("fork");
    if (waitpid(child, &status, 0) != child) give_up("waitpid");
    return (uint64_t)status;
}

static uint64_t fork_exit_unit(void) {
    pid_t child = fork();
    if (child == 0) _exit(5);
    return status_of(child);
}

static uint64_t fork_exec_unit(void) {
    char *arguments[] = {own_path, EXEC_CHILD, NULL}, *environment[] = {NULL};
    pid_t child = fork();
    if (child == 0) {
        execve(own_path, arguments, environment);
        _exit(127);
    }
    return status_of(child);
}

// --- pipe: a byte to another process and back -------------------------------------------------------------------------------------------------

enum { round_trips = 20 };

static int to_child[2], from_child[2];
static pid_t echo;

static bool pipe_prepare(void) {
    if (pipe(to_child) != 0 || pipe(from_child) != 0) give_up("pipe");
    echo = fork();
    if (echo < 0) give_up("fork");
    if (echo > 0) return true;
    uint8_t byte;
    close(to_child[1]);
    while (read(to_child[0], &byte, 1) == 1) {
        byte = (uint8_t)(byte * 5 + 1);
        if (write(from_child[1], &byte, 1) != 1) break;
    }
    _exit(0);
}

static uint64_t pipe_unit(void) {
    uint64_t checksum = 0;
    for (int i = 0; i < round_trips; i++) {
        uint8_t byte = (uint8_t)i;
        if (write(to_child[1], &byte, 1) != 1 || read(from_child[0], &byte, 1) != 1) give_up("pipe");
        checksum = mix(checksum, byte);
    }
    return checksum;
}

static void pipe_finish(void) {
    close(to_child[1]);
    status_of(echo);
}

// --- signal: to oneself, with a handler ------------------------------------------------------------------------------------------------------

enum { signals = 50 };

static volatile sig_atomic_t handled;
static pid_t own_process;

static void handle(int number) { handled += number == SIGUSR1; }

static bool signal_prepare(void) {
    struct sigaction action = {.sa_handler = handle};
    own_process = getpid();
    if (sigaction(SIGUSR1, &action, NULL) != 0) give_up("sigaction");
    return true;
}

static uint64_t signal_unit(void) {
    handled = 0;
    // Not raise(): it blocks and unblocks all signals around the call.
    for (int i = 0; i < signals; i++) syscall(SYS_tgkill, own_process, own_process, SIGUSR1);
    return (uint64_t)handled;
}

const struct row kernel_rows[] = {
    {.name = "syscall", .operation = "call", .operations = system_calls, .unit = syscall_unit},
    {.name = "page-fault", .operation = "page", .operations = fault_pages, .unit = fault_unit},
    {.name = "mmap", .operation = "pair", .operations = mappings, .unit = mmap_unit},
    {.name = "fork-exit", .operation = "process", .operations = 1, .unit = fork_exit_unit, .on_one_processor = true},
    {.name = "fork-exec", .operation = "process", .operations = 1, .unit = fork_exec_unit, .prepare = exec_prepare,
     .on_one_processor = true},
    {.name = "pipe", .operation = "round-trip", .operations = round_trips, .unit = pipe_unit, .prepare = pipe_prepare,
     .finish = pipe_finish, .on_one_processor = true},
    {.name = "signal", .operation = "signal", .operations = signals, .unit = signal_unit, .prepare = signal_prepare},
    {0},
};
