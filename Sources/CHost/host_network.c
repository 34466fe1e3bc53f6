#define _GNU_SOURCE
#include "host_network.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

_Static_assert(HOST_INTERFACE_NAME_SIZE == IFNAMSIZ, "the size is the kernel's");

static long result_or_errno(long result) { return result < 0 ? -errno : result; }

static long close_with(int fd, int error) {
    close(fd);
    return -error;
}

// MARK: Tap

long host_tap_open(const char *name, char actual[HOST_INTERFACE_NAME_SIZE]) {
    if (strlen(name) >= IFNAMSIZ) return -ENAMETOOLONG;
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return -errno;
    struct ifreq request;
    memset(&request, 0, sizeof request);
    strcpy(request.ifr_name, name);
    request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if (ioctl(fd, TUNSETIFF, &request) < 0) return close_with(fd, errno);
    memcpy(actual, request.ifr_name, IFNAMSIZ);
    return fd;
}

long host_tap_inquire(int fd, char actual[HOST_INTERFACE_NAME_SIZE], unsigned *flags) {
    struct ifreq request;
    memset(&request, 0, sizeof request);
    if (ioctl(fd, TUNGETIFF, &request) < 0) return -errno;
    memcpy(actual, request.ifr_name, IFNAMSIZ);
    *flags = (unsigned short)request.ifr_flags;
    return 0;
}

long host_tap_set_header_size(int fd, int size) { return result_or_errno(ioctl(fd, TUNSETVNETHDRSZ, &size)); }

long host_tap_set_offloads(int fd, unsigned flags) {
    return result_or_errno(ioctl(fd, TUNSETOFFLOAD, (unsigned long)flags));
}

unsigned host_tap_header_flag(void) { return IFF_VNET_HDR; }

// MARK: Datagrams

static long address_of(const char *path, struct sockaddr_un *address) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    if (!*path) return -EINVAL;
    if (strlen(path) >= sizeof address->sun_path) return -ENAMETOOLONG;
    strcpy(address->sun_path, path);
    return 0;
}

static int datagram_socket(void) { return socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); }

// Whether `path` is a socket whose owner has gone: only then may it be taken away.
static int is_abandoned(const struct sockaddr_un *address) {
    struct stat status;
    if (lstat(address->sun_path, &status) < 0 || !S_ISSOCK(status.st_mode)) return 0;
    int probe = datagram_socket();
    if (probe < 0) return 0;
    int refused = connect(probe, (const struct sockaddr *)address, sizeof *address) < 0 && errno == ECONNREFUSED;
    close(probe);
    return refused;
}

long host_datagram_bind(const char *path) {
    struct sockaddr_un address;
    long error = address_of(path, &address);
    if (error < 0) return error;
    int fd = datagram_socket();
    if (fd < 0) return -errno;
    // The mode of a socket that is not bound yet becomes that of its file (Linux, unix(7)).
    if (fchmod(fd, 0600) < 0) return close_with(fd, errno);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
    if (errno != EADDRINUSE) return close_with(fd, errno);
    if (!is_abandoned(&address) || unlink(path) < 0) return close_with(fd, EADDRINUSE);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) return close_with(fd, errno);
    return fd;
}

long host_datagram_connect(int fd, const char *path) {
    struct sockaddr_un address;
    long error = address_of(path, &address);
    if (error < 0) return error;
    return result_or_errno(connect(fd, (struct sockaddr *)&address, sizeof address));
}

long host_datagram_send(int fd, const void *buffer, size_t count) {
    return result_or_errno(send(fd, buffer, count, MSG_DONTWAIT | MSG_NOSIGNAL));
}

// MSG_TRUNC: the whole length of a datagram that did not fit.
long host_datagram_receive(int fd, void *buffer, size_t count) {
    return result_or_errno(recv(fd, buffer, count, MSG_DONTWAIT | MSG_TRUNC));
}

// MARK: Files

long host_writev(int fd, const struct iovec *pieces, int count) { return result_or_errno(writev(fd, pieces, count)); }

long host_truncate(int fd, uint64_t size) {
    if (size > INT64_MAX) return -EFBIG;
    return result_or_errno(ftruncate(fd, (off_t)size));
}
