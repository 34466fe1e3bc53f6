// What a share of a host folder needs of Linux: names below a directory without symbolic links, and what is done to a
// file that is known by an O_PATH descriptor. Every wrapper returns -errno. A `name` is one component; who calls has
// checked that, and an empty one stands for the descriptor itself.
#ifndef MARTLET_HOST_SHARE_H
#define MARTLET_HOST_SHARE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct host_share_time {
    int64_t seconds;
    uint32_t nanoseconds;
};

/// statx(2). `device` and `special` are numbers as makedev(3) has them; `birth` is zero where the file system has none.
struct host_share_facts {
    uint64_t device, inode, size, blocks, special;
    struct host_share_time access, modification, change, birth;
    uint32_t mode, links, user, group, block_size;
};

struct host_share_space {
    uint64_t blocks, free, available, files, free_files;
    uint32_t block_size, fragment_size, name_length;
};

/// A range of bytes as a POSIX lock has it: `end` is the last byte, INT64_MAX without one; `type` F_RDLCK, F_WRLCK or
/// F_UNLCK.
struct host_share_lock {
    uint64_t start, end;
    uint32_t type, process;
};

// MARK: Process and thread

/// Raises the process's limit of open descriptors as far as it may; the limit.
long host_share_raise_descriptor_limit(void);
/// From now on files that this thread makes get the mode that was asked for: its umask is its own, and 0.
long host_share_clear_umask(void);
unsigned host_share_user(void);
unsigned host_share_group(void);

// MARK: Names

/// A directory by its path, which may lead through symbolic links; O_PATH.
long host_share_open_root(const char *_Nonnull path);
/// An O_PATH descriptor of what `name` is in `directory`: never what is elsewhere, a symbolic link itself.
long host_share_open_name(int directory, const char *_Nonnull name);
long host_share_facts(int directory, const char *_Nonnull name, struct host_share_facts *_Nonnull facts);
/// A new regular file, open with `flags` (access mode, O_APPEND, …); -EEXIST where there is anything of that name.
long host_share_create(int directory, const char *_Nonnull name, int flags, unsigned mode);
/// A regular file, a FIFO or a socket, as S_IFMT of `mode` says.
long host_share_make_node(int directory, const char *_Nonnull name, unsigned mode);
long host_share_make_directory(int directory, const char *_Nonnull name, unsigned mode);
long host_share_make_symlink(int directory, const char *_Nonnull name, const char *_Nonnull target);
long host_share_make_link(int file, int directory, const char *_Nonnull name);
long host_share_remove(int directory, const char *_Nonnull name, int is_directory);
/// renameat2(2); `flags` as there.
long host_share_rename(int from, const char *_Nonnull name, int to, const char *_Nonnull new_name, unsigned flags);

// MARK: Files known by an O_PATH descriptor

/// Opens a regular file or a directory. Anything else, whose opening could do something, is -ENXIO.
long host_share_reopen(int path_descriptor, int flags);
/// A second O_PATH descriptor of an open file.
long host_share_path_descriptor(int fd);
long host_share_read_link(int path_descriptor, void *_Nonnull buffer, size_t size);
long host_share_set_mode(int path_descriptor, unsigned mode);
/// UINT32_MAX leaves one as it is.
long host_share_set_owner(int path_descriptor, uint32_t user, uint32_t group);
/// In the nanoseconds of a time to set: as it is, or now (utimensat(2)).
enum { HOST_SHARE_TIME_NOW = (1 << 30) - 1, HOST_SHARE_TIME_OMIT = (1 << 30) - 2 };
long host_share_set_times(int path_descriptor, struct host_share_time access, struct host_share_time modification);
long host_share_space(int path_descriptor, struct host_share_space *_Nonnull space);
/// The size of the value, which is in `value` if that has room; with `size` 0 only the size.
long host_share_get_attribute(int path_descriptor, const char *_Nonnull name, void *_Nullable value, size_t size);
long host_share_set_attribute(int path_descriptor, const char *_Nonnull name, const void *_Nullable value, size_t size,
                              int flags);
long host_share_list_attributes(int path_descriptor, void *_Nullable list, size_t size);
long host_share_remove_attribute(int path_descriptor, const char *_Nonnull name);

// MARK: Open files

long host_share_set_descriptor_mode(int fd, unsigned mode);
long host_share_synchronize(int fd, int only_data);
/// Everything in the file system that `fd` is in (syncfs(2)).
long host_share_synchronize_all(int fd);
long host_share_allocate(int fd, uint32_t mode, uint64_t offset, uint64_t count);
/// SEEK_DATA or SEEK_HOLE.
long host_share_seek(int fd, uint64_t offset, int whence);
long host_share_copy_range(int from, uint64_t from_offset, int to, uint64_t to_offset, uint64_t count);
/// Locks that belong to the open file (F_OFD_SETLK): never waits.
long host_share_set_lock(int fd, const struct host_share_lock *_Nonnull lock);
long host_share_get_lock(int fd, struct host_share_lock *_Nonnull lock);
/// getdents64(2): records as the kernel lays them out.
long host_share_read_directory(int fd, void *_Nonnull buffer, size_t size);
long host_share_seek_directory(int fd, uint64_t offset);

#endif
