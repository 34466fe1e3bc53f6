#define _GNU_SOURCE
#include "host_files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

static long result_or_errno(long result) { return result < 0 ? -errno : result; }

static int is_offset(uint64_t offset, uint64_t count) {
    return offset <= INT64_MAX && count <= (uint64_t)INT64_MAX - offset;
}

// MARK: Transfers

long host_preadv(int fd, const struct iovec *pieces, size_t count, uint64_t offset) {
    if (!is_offset(offset, 0)) return -EINVAL;
    return result_or_errno(preadv(fd, pieces, (int)(count > IOV_MAX ? IOV_MAX : count), (off_t)offset));
}

long host_preadv_cached(int fd, const struct iovec *pieces, size_t count, uint64_t offset) {
    if (!is_offset(offset, 0)) return -EINVAL;
    return result_or_errno(preadv2(fd, pieces, (int)(count > IOV_MAX ? IOV_MAX : count), (off_t)offset, RWF_NOWAIT));
}

long host_pwritev(int fd, const struct iovec *pieces, size_t count, uint64_t offset) {
    if (!is_offset(offset, 0)) return -EFBIG;
    return result_or_errno(pwritev(fd, pieces, (int)(count > IOV_MAX ? IOV_MAX : count), (off_t)offset));
}

long host_fdatasync(int fd) { return result_or_errno(fdatasync(fd)); }

// MARK: Size and space

static long device_facts(int fd, struct host_file_facts *facts) {
    int logical = 512, read_only = 0;
    if (ioctl(fd, BLKGETSIZE64, &facts->size) < 0) return -errno;
    if (ioctl(fd, BLKSSZGET, &logical) < 0) return -errno;
    if (ioctl(fd, BLKROGET, &read_only) < 0) return -errno;
    facts->kind = HOST_FILE_BLOCK_DEVICE;
    facts->is_read_only = read_only != 0;
    facts->allocated = facts->size;
    facts->logical_block_size = facts->direct_alignment = (uint32_t)logical;
    return 0;
}

long host_file_facts(int fd, struct host_file_facts *facts) {
    struct stat status;
    if (fstat(fd, &status) < 0) return -errno;
    memset(facts, 0, sizeof *facts);
    facts->size = status.st_size > 0 ? (uint64_t)status.st_size : 0;
    facts->allocated = (uint64_t)status.st_blocks * 512;
    facts->device = status.st_dev;
    facts->inode = status.st_ino;
    facts->logical_block_size = 512;
    // A file system does not say what O_DIRECT wants of it before Linux 6.1; a page is enough for all.
    facts->direct_alignment = 4096;
    if (S_ISDIR(status.st_mode)) return -EISDIR;
    if (S_ISBLK(status.st_mode)) {
        facts->device = status.st_rdev;
        facts->inode = 0;
        return device_facts(fd, facts);
    }
    facts->kind = S_ISREG(status.st_mode) ? HOST_FILE_REGULAR : HOST_FILE_OTHER;
    return 0;
}

long host_ftruncate(int fd, uint64_t size) {
    return is_offset(size, 0) ? result_or_errno(ftruncate(fd, (off_t)size)) : -EFBIG;
}

static long allocate(int fd, int mode, uint64_t offset, uint64_t count) {
    if (!is_offset(offset, count)) return -EFBIG;
    return count ? result_or_errno(fallocate(fd, mode, (off_t)offset, (off_t)count)) : 0;
}

long host_allocate(int fd, uint64_t offset, uint64_t count) { return allocate(fd, 0, offset, count); }

long host_punch_hole(int fd, uint64_t offset, uint64_t count) {
    return allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, count);
}

long host_zero_range(int fd, uint64_t offset, uint64_t count) {
    return allocate(fd, FALLOC_FL_ZERO_RANGE, offset, count);
}

long host_device_discard(int fd, uint64_t offset, uint64_t count) {
    uint64_t range[2] = {offset, count};
    return result_or_errno(ioctl(fd, BLKDISCARD, range));
}

long host_device_zero(int fd, uint64_t offset, uint64_t count) {
    uint64_t range[2] = {offset, count};
    return result_or_errno(ioctl(fd, BLKZEROOUT, range));
}

long host_seek_data(int fd, uint64_t offset) {
    return is_offset(offset, 0) ? result_or_errno(lseek(fd, (off_t)offset, SEEK_DATA)) : -ENXIO;
}

long host_seek_hole(int fd, uint64_t offset) {
    return is_offset(offset, 0) ? result_or_errno(lseek(fd, (off_t)offset, SEEK_HOLE)) : -ENXIO;
}

// MARK: Locks

static struct flock byte_lock(short type, uint64_t offset) {
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = 1};
}

long host_lock_byte_shared(int fd, uint64_t offset) {
    struct flock lock = byte_lock(F_RDLCK, offset);
    return result_or_errno(fcntl(fd, F_OFD_SETLK, &lock));
}

long host_unlock_byte(int fd, uint64_t offset) {
    struct flock lock = byte_lock(F_UNLCK, offset);
    return result_or_errno(fcntl(fd, F_OFD_SETLK, &lock));
}

long host_byte_is_locked(int fd, uint64_t offset) {
    // A write lock would meet every lock of another open file, and none of this one's.
    struct flock lock = byte_lock(F_WRLCK, offset);
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0) return -errno;
    return lock.l_type != F_UNLCK;
}

// MARK: Names

long host_rename(const char *from, const char *to) { return result_or_errno(rename(from, to)); }

long host_unlink(const char *path) { return result_or_errno(unlink(path)); }

long host_sync_directory(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -errno;
    long result = result_or_errno(fsync(fd));
    close(fd);
    return result;
}

// MARK: A lock and its condition

struct host_monitor {
    pthread_mutex_t mutex;
    pthread_cond_t condition;
};

struct host_monitor *host_monitor_create(void) {
    struct host_monitor *monitor = malloc(sizeof *monitor);
    if (!monitor) abort();
    pthread_mutex_init(&monitor->mutex, NULL);
    pthread_cond_init(&monitor->condition, NULL);
    return monitor;
}

void host_monitor_destroy(struct host_monitor *monitor) {
    pthread_cond_destroy(&monitor->condition);
    pthread_mutex_destroy(&monitor->mutex);
    free(monitor);
}

void host_monitor_lock(struct host_monitor *monitor) { pthread_mutex_lock(&monitor->mutex); }
int host_monitor_try_lock(struct host_monitor *monitor) { return pthread_mutex_trylock(&monitor->mutex) == 0; }
void host_monitor_unlock(struct host_monitor *monitor) { pthread_mutex_unlock(&monitor->mutex); }
void host_monitor_wait(struct host_monitor *monitor) { pthread_cond_wait(&monitor->condition, &monitor->mutex); }
void host_monitor_wake_all(struct host_monitor *monitor) { pthread_cond_broadcast(&monitor->condition); }

// MARK: Memory

int host_is_zero(const void *bytes, size_t count) {
    const unsigned char *head = bytes;
    if (!count) return 1;
    // All bytes equal the first, and the first is zero.
    return head[0] == 0 && memcmp(head, head + 1, count - 1) == 0;
}
