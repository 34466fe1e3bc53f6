#define _GNU_SOURCE
#include "host_share.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

static long result_or_errno(long result) { return result < 0 ? -errno : result; }

// A descriptor by its place in /proc, for the calls that know only names. What it leads to is the very file, whatever
// has become of its name.
struct descriptor_path {
    char text[40];
};

static struct descriptor_path path_of(int fd) {
    struct descriptor_path path;
    snprintf(path.text, sizeof path.text, "/proc/self/fd/%d", fd);
    return path;
}

// MARK: Process and thread

long host_share_raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return -errno;
    if (limit.rlim_cur < limit.rlim_max) {
        struct rlimit raised = {limit.rlim_max, limit.rlim_max};
        if (setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
    }
    return limit.rlim_cur > INT_MAX ? INT_MAX : (long)limit.rlim_cur;
}

long host_share_clear_umask(void) {
    static _Thread_local int is_cleared;
    if (is_cleared) return 0;
    if (unshare(CLONE_FS) < 0) return -errno;
    umask(0);
    is_cleared = 1;
    return 0;
}

unsigned host_share_user(void) { return geteuid(); }
unsigned host_share_group(void) { return getegid(); }

// MARK: Names

long host_share_open_root(const char *path) {
    return result_or_errno(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC));
}

static long open_beneath(int directory, const char *name, int flags, unsigned mode) {
    struct open_how how = {
        .flags = (uint64_t)(unsigned)(flags | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY),
        .mode = mode,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    // O_PATH allows next to nothing beside it.
    if (flags & O_PATH) how.flags &= ~(uint64_t)O_NOCTTY;
    return result_or_errno(syscall(SYS_openat2, directory, name, &how, sizeof how));
}

long host_share_open_name(int directory, const char *name) { return open_beneath(directory, name, O_PATH, 0); }

static struct host_share_time time_of(struct statx_timestamp time) {
    return (struct host_share_time){time.tv_sec, time.tv_nsec};
}

long host_share_facts(int directory, const char *name, struct host_share_facts *facts) {
    struct statx status;
    int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH;
    if (statx(directory, name, flags, STATX_BASIC_STATS | STATX_BTIME, &status) < 0) return -errno;
    memset(facts, 0, sizeof *facts);
    facts->device = makedev(status.stx_dev_major, status.stx_dev_minor);
    facts->special = makedev(status.stx_rdev_major, status.stx_rdev_minor);
    facts->inode = status.stx_ino;
    facts->size = status.stx_size;
    facts->blocks = status.stx_blocks;
    facts->access = time_of(status.stx_atime);
    facts->modification = time_of(status.stx_mtime);
    facts->change = time_of(status.stx_ctime);
    if (status.stx_mask & STATX_BTIME) facts->birth = time_of(status.stx_btime);
    facts->mode = status.stx_mode;
    facts->links = status.stx_nlink;
    facts->user = status.stx_uid;
    facts->group = status.stx_gid;
    facts->block_size = status.stx_blksize;
    return 0;
}

long host_share_create(int directory, const char *name, int flags, unsigned mode) {
    return open_beneath(directory, name, flags | O_CREAT | O_EXCL, mode & 07777);
}

long host_share_make_node(int directory, const char *name, unsigned mode) {
    unsigned type = mode & S_IFMT;
    if (type != S_IFREG && type != S_IFIFO && type != S_IFSOCK) return -EPERM;
    return result_or_errno(mknodat(directory, name, mode, 0));
}

long host_share_make_directory(int directory, const char *name, unsigned mode) {
    return result_or_errno(mkdirat(directory, name, mode & 07777));
}

long host_share_make_symlink(int directory, const char *name, const char *target) {
    return result_or_errno(symlinkat(target, directory, name));
}

long host_share_make_link(int file, int directory, const char *name) {
    struct descriptor_path path = path_of(file);
    return result_or_errno(linkat(AT_FDCWD, path.text, directory, name, AT_SYMLINK_FOLLOW));
}

long host_share_remove(int directory, const char *name, int is_directory) {
    return result_or_errno(unlinkat(directory, name, is_directory ? AT_REMOVEDIR : 0));
}

long host_share_rename(int from, const char *name, int to, const char *new_name, unsigned flags) {
    return result_or_errno(renameat2(from, name, to, new_name, flags));
}

// MARK: Files known by an O_PATH descriptor

long host_share_reopen(int path_descriptor, int flags) {
    struct stat status;
    // The type of what an open descriptor stands for cannot change.
    if (fstat(path_descriptor, &status) < 0) return -errno;
    if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)) return -ENXIO;
    struct descriptor_path path = path_of(path_descriptor);
    return result_or_errno(open(path.text, (flags & ~O_NOFOLLOW) | O_CLOEXEC | O_NOCTTY));
}

long host_share_path_descriptor(int fd) {
    struct descriptor_path path = path_of(fd);
    return result_or_errno(open(path.text, O_PATH | O_CLOEXEC));
}

long host_share_read_link(int path_descriptor, void *buffer, size_t size) {
    return result_or_errno(readlinkat(path_descriptor, "", buffer, size));
}

long host_share_set_mode(int path_descriptor, unsigned mode) {
    struct descriptor_path path = path_of(path_descriptor);
    return result_or_errno(chmod(path.text, mode & 07777));
}

long host_share_set_owner(int path_descriptor, uint32_t user, uint32_t group) {
    return result_or_errno(fchownat(path_descriptor, "", user, group, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW));
}

_Static_assert(HOST_SHARE_TIME_NOW == UTIME_NOW && HOST_SHARE_TIME_OMIT == UTIME_OMIT, "the values are the kernel's");

long host_share_set_times(int path_descriptor, struct host_share_time access, struct host_share_time modification) {
    struct timespec times[2] = {
        {.tv_sec = access.seconds, .tv_nsec = access.nanoseconds},
        {.tv_sec = modification.seconds, .tv_nsec = modification.nanoseconds},
    };
    struct descriptor_path path = path_of(path_descriptor);
    return result_or_errno(utimensat(AT_FDCWD, path.text, times, 0));
}

long host_share_space(int path_descriptor, struct host_share_space *space) {
    struct statfs status;
    if (fstatfs(path_descriptor, &status) < 0) return -errno;
    *space = (struct host_share_space){
        .blocks = status.f_blocks,
        .free = status.f_bfree,
        .available = status.f_bavail,
        .files = status.f_files,
        .free_files = status.f_ffree,
        .block_size = (uint32_t)status.f_bsize,
        .fragment_size = (uint32_t)status.f_frsize,
        .name_length = (uint32_t)status.f_namelen,
    };
    return 0;
}

long host_share_get_attribute(int path_descriptor, const char *name, void *value, size_t size) {
    struct descriptor_path path = path_of(path_descriptor);
    return result_or_errno(getxattr(path.text, name, value, size));
}

long host_share_set_attribute(int path_descriptor, const char *name, const void *value, size_t size, int flags) {
    struct descriptor_path path = path_of(path_descriptor);
    return result_or_errno(setxattr(path.text, name, value, size, flags));
}

long host_share_list_attributes(int path_descriptor, void *list, size_t size) {
    struct descriptor_path path = path_of(path_descriptor);
    return result_or_errno(listxattr(path.text, list, size));
}

long host_share_remove_attribute(int path_descriptor, const char *name) {
    struct descriptor_path path = path_of(path_descriptor);
    return result_or_errno(removexattr(path.text, name));
}

// MARK: Open files

long host_share_set_descriptor_mode(int fd, unsigned mode) { return result_or_errno(fchmod(fd, mode & 07777)); }

long host_share_synchronize(int fd, int only_data) { return result_or_errno(only_data ? fdatasync(fd) : fsync(fd)); }

long host_share_synchronize_all(int fd) { return result_or_errno(syncfs(fd)); }

static int is_offset(uint64_t offset, uint64_t count) {
    return offset <= INT64_MAX && count <= (uint64_t)INT64_MAX - offset;
}

long host_share_allocate(int fd, uint32_t mode, uint64_t offset, uint64_t count) {
    if (!is_offset(offset, count)) return -EFBIG;
    return result_or_errno(fallocate(fd, (int)mode, (off_t)offset, (off_t)count));
}

long host_share_seek(int fd, uint64_t offset, int whence) {
    if (whence != SEEK_DATA && whence != SEEK_HOLE) return -EINVAL;
    return is_offset(offset, 0) ? result_or_errno(lseek(fd, (off_t)offset, whence)) : -ENXIO;
}

long host_share_copy_range(int from, uint64_t from_offset, int to, uint64_t to_offset, uint64_t count) {
    if (!is_offset(from_offset, 0) || !is_offset(to_offset, 0)) return -EINVAL;
    off_t source = (off_t)from_offset, target = (off_t)to_offset;
    // More than this does not fit into the reply, nor into one call of the kernel's.
    size_t limit = 0x7FFFF000;
    return result_or_errno(copy_file_range(from, &source, to, &target, count < limit ? count : limit, 0));
}

static int to_kernel(const struct host_share_lock *lock, struct flock *result) {
    if (lock->start > INT64_MAX || lock->end < lock->start) return -1;
    int is_open_ended = lock->end >= INT64_MAX;
    *result = (struct flock){
        .l_type = (short)lock->type,
        .l_whence = SEEK_SET,
        .l_start = (off_t)lock->start,
        .l_len = is_open_ended ? 0 : (off_t)(lock->end - lock->start + 1),
    };
    return lock->type == F_RDLCK || lock->type == F_WRLCK || lock->type == F_UNLCK ? 0 : -1;
}

long host_share_set_lock(int fd, const struct host_share_lock *lock) {
    struct flock range;
    if (to_kernel(lock, &range) < 0) return -EINVAL;
    return result_or_errno(fcntl(fd, F_OFD_SETLK, &range));
}

long host_share_get_lock(int fd, struct host_share_lock *lock) {
    struct flock range;
    if (to_kernel(lock, &range) < 0 || lock->type == F_UNLCK) return -EINVAL;
    if (fcntl(fd, F_OFD_GETLK, &range) < 0) return -errno;
    lock->type = (uint32_t)range.l_type;
    if (range.l_type == F_UNLCK) return 0;
    lock->start = (uint64_t)range.l_start;
    lock->end = range.l_len ? (uint64_t)range.l_start + (uint64_t)range.l_len - 1 : INT64_MAX;
    return 0;
}

long host_share_read_directory(int fd, void *buffer, size_t size) {
    return result_or_errno(syscall(SYS_getdents64, fd, buffer, size));
}

long host_share_seek_directory(int fd, uint64_t offset) { return result_or_errno(lseek(fd, (off_t)offset, SEEK_SET)); }
