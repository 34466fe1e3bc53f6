#define _GNU_SOURCE
#include "host_process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static long result_or_errno(long result) { return result < 0 ? -errno : result; }

// MARK: Child processes

// Above the numbers that the child gets, so that no duplicate overwrites a source.
static int duplicate_above(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 64); }

long host_spawn(const char *program, const char *const *arguments, const char *const *environment, int input,
                int output, int extra) {
    const int sources[] = {input, output, output, extra};
    int copies[] = {-1, -1, -1, -1};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    pid_t pid = -1;
    int error = posix_spawn_file_actions_init(&actions);
    if (error) return -error;
    error = posix_spawnattr_init(&attributes);
    if (error) {
        posix_spawn_file_actions_destroy(&actions);
        return -error;
    }
    for (int i = 0; i < 4 && !error; i++) {
        if (sources[i] < 0) continue;
        copies[i] = duplicate_above(sources[i]);
        error = copies[i] < 0 ? errno : posix_spawn_file_actions_adddup2(&actions, copies[i], i);
    }
    // What other code left open on exec: a pipe's other end, say, whose reader would wait for this child as well.
    if (!error) error = posix_spawn_file_actions_addclosefrom_np(&actions, extra < 0 ? 3 : 4);
    sigemptyset(&none);
    sigfillset(&all);
    if (!error) error = posix_spawnattr_setsigmask(&attributes, &none);
    if (!error) error = posix_spawnattr_setsigdefault(&attributes, &all);
    if (!error) error = posix_spawnattr_setpgroup(&attributes, 0);
    if (!error)
        error = posix_spawnattr_setflags(&attributes,
                                         POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    if (!error)
        error = posix_spawn(&pid, program, &actions, &attributes, (char *const *)arguments, (char *const *)environment);
    for (int i = 0; i < 4; i++)
        if (copies[i] >= 0) close(copies[i]);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return error ? -error : pid;
}

long host_process_descriptor(int pid) { return result_or_errno(syscall(SYS_pidfd_open, pid, 0)); }

long host_process_status(int pid, int *status) {
    long result = result_or_errno(waitpid(pid, status, WNOHANG));
    return result == 0 ? -EAGAIN : result;
}

long host_signal_group(int pid, int signal) { return result_or_errno(kill(-pid, signal)); }

long host_pipe(int *reading, int *writing) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0) return -errno;
    *reading = ends[0];
    *writing = ends[1];
    return 0;
}

// MARK: Directories and files

long host_make_directory(const char *path, unsigned mode) { return result_or_errno(mkdir(path, mode)); }

long host_remove_directory(const char *path) { return result_or_errno(rmdir(path)); }

long host_change_mode(const char *path, unsigned mode) { return result_or_errno(chmod(path, mode)); }

long host_open_directory(const char *path) {
    return result_or_errno(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

long host_free_space(const char *path, uint64_t *bytes) {
    struct statvfs facts;
    if (statvfs(path, &facts) < 0) return -errno;
    *bytes = (uint64_t)facts.f_bavail * facts.f_frsize;
    return 0;
}

long host_open_unnamed(const char *directory) {
    char *path = NULL;
    long result = result_or_errno(open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    // A file system without such files says so in one of these ways (open(2)).
    if (result != -EOPNOTSUPP && result != -EISDIR && result != -ENOENT && result != -EINVAL) return result;
    if (asprintf(&path, "%s/martlet.XXXXXX", directory) < 0) return -ENOMEM;
    result = result_or_errno(mkostemp(path, O_CLOEXEC));
    if (result >= 0) unlink(path);
    free(path);
    return result;
}
