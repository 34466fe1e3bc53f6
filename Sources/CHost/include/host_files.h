// Files as an image format uses them: positioned vectors, allocation, extents and locks, and the lock that threads wait
// on. Every wrapper returns -errno.
#ifndef MARTLET_HOST_FILES_H
#define MARTLET_HOST_FILES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

// MARK: Transfers

/// At most IOV_MAX pieces are taken; the result says how far it came.
long host_preadv(int fd, const struct iovec *_Nonnull pieces, size_t count, uint64_t offset);
/// Only what the page cache has (RWF_NOWAIT, preadv2(2)); -EAGAIN where that is nothing, -EOPNOTSUPP where the file system
/// cannot tell.
long host_preadv_cached(int fd, const struct iovec *_Nonnull pieces, size_t count, uint64_t offset);
long host_pwritev(int fd, const struct iovec *_Nonnull pieces, size_t count, uint64_t offset);
long host_fdatasync(int fd);

// MARK: Size and space

enum host_file_kind { HOST_FILE_REGULAR, HOST_FILE_BLOCK_DEVICE, HOST_FILE_OTHER };

struct host_file_facts {
    uint64_t size;
    /// Bytes that the file system has allocated for it.
    uint64_t allocated;
    uint64_t device, inode;
    /// What O_DIRECT wants offsets, counts and addresses to be a multiple of.
    uint32_t direct_alignment;
    uint32_t logical_block_size;
    enum host_file_kind kind;
    /// A block device that takes no writes, although it can be opened for them.
    uint32_t is_read_only;
};

long host_file_facts(int fd, struct host_file_facts *_Nonnull facts);
long host_ftruncate(int fd, uint64_t size);
long host_allocate(int fd, uint64_t offset, uint64_t count);
/// Gives the range back; it reads as zeros afterwards. -EOPNOTSUPP where that cannot be.
long host_punch_hole(int fd, uint64_t offset, uint64_t count);
/// Makes the range read as zeros without giving its space back.
long host_zero_range(int fd, uint64_t offset, uint64_t count);
long host_device_discard(int fd, uint64_t offset, uint64_t count);
long host_device_zero(int fd, uint64_t offset, uint64_t count);
/// SEEK_DATA and SEEK_HOLE; -ENXIO behind the last data.
long host_seek_data(int fd, uint64_t offset);
long host_seek_hole(int fd, uint64_t offset);

// MARK: Locks on bytes of a file, which belong to the open file (F_OFD_SETLK, fcntl(2))

long host_lock_byte_shared(int fd, uint64_t offset);
long host_unlock_byte(int fd, uint64_t offset);
/// 1 when somebody else holds any lock on that byte, 0 when nobody does.
long host_byte_is_locked(int fd, uint64_t offset);

// MARK: Names

long host_rename(const char *_Nonnull from, const char *_Nonnull to);
long host_unlink(const char *_Nonnull path);
/// fsync of a directory, so that a rename in it lasts.
long host_sync_directory(const char *_Nonnull path);

// MARK: A lock and its condition

struct host_monitor;
struct host_monitor *_Nonnull host_monitor_create(void);
void host_monitor_destroy(struct host_monitor *_Nonnull monitor);
void host_monitor_lock(struct host_monitor *_Nonnull monitor);
/// 1 with the lock, 0 where somebody else has it.
int host_monitor_try_lock(struct host_monitor *_Nonnull monitor);
void host_monitor_unlock(struct host_monitor *_Nonnull monitor);
void host_monitor_wait(struct host_monitor *_Nonnull monitor);
void host_monitor_wake_all(struct host_monitor *_Nonnull monitor);

// MARK: Memory

/// 1 if all `count` bytes are zero.
int host_is_zero(const void *_Nonnull bytes, size_t count);

#endif
