#define _GNU_SOURCE
#include "host_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static long result_or_errno(long result) { return result < 0 ? -errno : result; }

static long close_with(int fd, int error) {
    close(fd);
    return -error;
}

static int set_address(const char *path, struct sockaddr_un *address) {
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof address->sun_path) return -ENAMETOOLONG;
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path, path, length);
    return 0;
}

static int new_socket(void) { return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); }

// Whether `path` is a socket that nobody listens on: only that may be removed.
static long stale(const char *path, const struct sockaddr_un *address) {
    struct stat status;
    if (lstat(path, &status) < 0) return -errno;
    if (!S_ISSOCK(status.st_mode)) return -EEXIST;
    int probe = new_socket();
    if (probe < 0) return -errno;
    long result = connect(probe, (const struct sockaddr *)address, sizeof *address) < 0 ? -errno : 0;
    close(probe);
    return result == -ECONNREFUSED ? 0 : -EADDRINUSE;
}

long host_stream_listen(const char *path, uint64_t *inode) {
    struct sockaddr_un address;
    long error = set_address(path, &address);
    if (error) return error;
    int fd = new_socket();
    if (fd < 0) return -errno;
    // The mode of the file is that of the socket, less the umask, at bind: nobody else can connect before a chmod.
    if (fchmod(fd, 0600) < 0) return close_with(fd, errno);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        if (errno != EADDRINUSE) return close_with(fd, errno);
        error = stale(path, &address);
        if (error) return close_with(fd, (int)-error);
        if (unlink(path) < 0) return close_with(fd, errno);
        if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) return close_with(fd, errno);
    }
    struct stat status;
    if (lstat(path, &status) < 0 || listen(fd, 64) < 0) {
        int number = errno;
        unlink(path);
        return close_with(fd, number);
    }
    *inode = status.st_ino;
    return fd;
}

long host_stream_accept(int listener) {
    return result_or_errno(accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

long host_stream_connect(const char *path) {
    struct sockaddr_un address;
    long error = set_address(path, &address);
    if (error) return error;
    int fd = new_socket();
    if (fd < 0) return -errno;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) return close_with(fd, errno);
    return fd;
}

static struct msghdr message_of(const struct iovec *pieces, size_t count) {
    return (struct msghdr){.msg_iov = (struct iovec *)(uintptr_t)pieces, .msg_iovlen = count > IOV_MAX ? IOV_MAX : count};
}

long host_stream_send(int fd, const struct iovec *pieces, size_t count) {
    struct msghdr message = message_of(pieces, count);
    return result_or_errno(sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT));
}

long host_stream_receive(int fd, const struct iovec *pieces, size_t count) {
    struct msghdr message = message_of(pieces, count);
    return result_or_errno(recvmsg(fd, &message, MSG_DONTWAIT));
}

long host_stream_shut(int fd, int how) { return result_or_errno(shutdown(fd, how)); }

long host_stream_remove(const char *path, uint64_t inode) {
    struct stat status;
    if (lstat(path, &status) < 0) return -errno;
    if (!S_ISSOCK(status.st_mode) || status.st_ino != inode) return -ESTALE;
    return result_or_errno(unlink(path));
}

// MARK: epoll

_Static_assert(HOST_EPOLL_READABLE == EPOLLIN && HOST_EPOLL_WRITABLE == EPOLLOUT && HOST_EPOLL_ERROR == EPOLLERR &&
                   HOST_EPOLL_HUNG_UP == EPOLLHUP && HOST_EPOLL_ENDED == EPOLLRDHUP,
               "the values are the kernel's");

long host_epoll_create(void) { return result_or_errno(epoll_create1(EPOLL_CLOEXEC)); }

static long control(int epoll, int operation, int fd, uint32_t events, uint64_t token) {
    struct epoll_event event = {.events = events, .data = {.u64 = token}};
    return result_or_errno(epoll_ctl(epoll, operation, fd, &event));
}

long host_epoll_add(int epoll, int fd, uint32_t events, uint64_t token) {
    return control(epoll, EPOLL_CTL_ADD, fd, events, token);
}

long host_epoll_change(int epoll, int fd, uint32_t events, uint64_t token) {
    return control(epoll, EPOLL_CTL_MOD, fd, events, token);
}

long host_epoll_remove(int epoll, int fd) { return control(epoll, EPOLL_CTL_DEL, fd, 0, 0); }

long host_epoll_wait(int epoll, struct host_epoll_event *events, int limit, int timeout_ms) {
    struct epoll_event found[64];
    if (limit > 64) limit = 64;
    int count = epoll_wait(epoll, found, limit, timeout_ms);
    if (count < 0) return -errno;
    for (int index = 0; index < count; index++)
        events[index] = (struct host_epoll_event){found[index].events, found[index].data.u64};
    return count;
}
