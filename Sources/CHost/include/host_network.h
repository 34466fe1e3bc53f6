// What packet back ends need of Linux: tap devices, datagram sockets of the file system. Results as in host_system.h.
#ifndef MARTLET_HOST_NETWORK_H
#define MARTLET_HOST_NETWORK_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum { HOST_INTERFACE_NAME_SIZE = 16 };

/// Opens the tap device `name` with a virtio-net header (an empty name: the kernel chooses), non-blocking. The real
/// name goes to `actual`.
long host_tap_open(const char *_Nonnull name, char actual[_Nonnull HOST_INTERFACE_NAME_SIZE]);
/// Name and IFF_ flags of a tap descriptor that somebody else opened.
long host_tap_inquire(int fd, char actual[_Nonnull HOST_INTERFACE_NAME_SIZE], unsigned *_Nonnull flags);
long host_tap_set_header_size(int fd, int size);
/// TUN_F_ flags: what the kernel may leave undone in frames that it hands out.
long host_tap_set_offloads(int fd, unsigned flags);
/// The IFF_ flag that says whether frames carry a virtio-net header.
unsigned host_tap_header_flag(void);

/// A datagram socket bound to `path` (mode 0600), non-blocking. A socket that nobody listens on any more is replaced.
long host_datagram_bind(const char *_Nonnull path);
long host_datagram_connect(int fd, const char *_Nonnull path);
/// One datagram, without waiting.
long host_datagram_send(int fd, const void *_Nonnull buffer, size_t count);
long host_datagram_receive(int fd, void *_Nonnull buffer, size_t count);

long host_writev(int fd, const struct iovec *_Nonnull pieces, int count);
long host_truncate(int fd, uint64_t size);

#endif
