// Stream sockets of the file system and epoll, for the socket device. Every wrapper returns -errno.
#ifndef MARTLET_HOST_STREAM_H
#define MARTLET_HOST_STREAM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/// A stream socket that listens at `path` (mode 0600), non-blocking. A socket that nobody listens on any more is
/// replaced; -EADDRINUSE where somebody does, -EEXIST where something else has that name. `inode` is the new file's.
long host_stream_listen(const char *_Nonnull path, uint64_t *_Nonnull inode);
/// A connection, non-blocking; -EAGAIN where there is none.
long host_stream_accept(int listener);
/// Connects without waiting: -EAGAIN where the listener has no room.
long host_stream_connect(const char *_Nonnull path);
/// Without a signal where the other end is gone.
long host_stream_send(int fd, const struct iovec *_Nonnull pieces, size_t count);
long host_stream_receive(int fd, const struct iovec *_Nonnull pieces, size_t count);
/// SHUT_RD, SHUT_WR or SHUT_RDWR.
long host_stream_shut(int fd, int how);
/// Removes a socket's file, unless it is another one by now (-ESTALE).
long host_stream_remove(const char *_Nonnull path, uint64_t inode);

struct host_epoll_event {
    uint32_t events;
    uint64_t token;
};

// As in epoll_ctl(2).
enum {
    HOST_EPOLL_READABLE = 0x001,
    HOST_EPOLL_WRITABLE = 0x004,
    HOST_EPOLL_ERROR = 0x008,
    HOST_EPOLL_HUNG_UP = 0x010,
    HOST_EPOLL_ENDED = 0x2000,
};

long host_epoll_create(void);
long host_epoll_add(int epoll, int fd, uint32_t events, uint64_t token);
long host_epoll_change(int epoll, int fd, uint32_t events, uint64_t token);
long host_epoll_remove(int epoll, int fd);
/// Waits for ever where the timeout is negative; the number of events.
long host_epoll_wait(int epoll, struct host_epoll_event *_Nonnull events, int limit, int timeout_ms);

#endif
