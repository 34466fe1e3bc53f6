// The kernel's virtio-net data path, /dev/vhost-net (linux/vhost.h): one ioctl each. Results as in host_system.h.
#ifndef MARTLET_HOST_VHOST_H
#define MARTLET_HOST_VHOST_H

#include <stddef.h>
#include <stdint.h>

/// Guest memory as the data path finds it.
struct host_vhost_region {
    uint64_t guest_address;
    uint64_t size;
    uint64_t host_address;
};

/// A split ring's three parts, as addresses of this process.
struct host_vhost_ring {
    uint64_t descriptors;
    uint64_t available;
    uint64_t used;
};

enum { HOST_VHOST_KICK, HOST_VHOST_CALL, HOST_VHOST_ERROR };

long host_vhost_net_open(void);
long host_vhost_set_owner(int fd);
long host_vhost_features(int fd, uint64_t *_Nonnull features);
long host_vhost_set_features(int fd, uint64_t features);
long host_vhost_set_memory(int fd, const struct host_vhost_region *_Nonnull regions, size_t count);
long host_vhost_set_ring_size(int fd, unsigned ring, unsigned size);
/// The next entry of the available ring.
long host_vhost_set_ring_base(int fd, unsigned ring, unsigned base);
long host_vhost_ring_base(int fd, unsigned ring);
long host_vhost_set_ring_addresses(int fd, unsigned ring, const struct host_vhost_ring *_Nonnull addresses);
/// One of a ring's three eventfds (HOST_VHOST_KICK, …).
long host_vhost_set_ring_event(int fd, unsigned ring, int event, int eventfd);
/// Starts a ring on a tap device; -1 stops it, and nothing of it is under way afterwards.
long host_vhost_net_set_backend(int fd, unsigned ring, int tap);

#endif
