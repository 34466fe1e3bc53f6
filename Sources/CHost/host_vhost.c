#include "host_vhost.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vhost.h>
#include <sys/ioctl.h>

// As many as a kernel takes that was not told otherwise (max_mem_regions of the module vhost).
enum { REGION_LIMIT = 64 };

static long result_or_errno(long result) { return result < 0 ? -errno : result; }

long host_vhost_net_open(void) { return result_or_errno(open("/dev/vhost-net", O_RDWR | O_CLOEXEC)); }

long host_vhost_set_owner(int fd) { return result_or_errno(ioctl(fd, VHOST_SET_OWNER)); }

long host_vhost_features(int fd, uint64_t *features) {
    __u64 value = 0;
    long result = result_or_errno(ioctl(fd, VHOST_GET_FEATURES, &value));
    *features = value;
    return result;
}

long host_vhost_set_features(int fd, uint64_t features) {
    __u64 value = features;
    return result_or_errno(ioctl(fd, VHOST_SET_FEATURES, &value));
}

long host_vhost_set_memory(int fd, const struct host_vhost_region *regions, size_t count) {
    if (count > REGION_LIMIT) return -E2BIG;
    _Alignas(struct vhost_memory) char
        buffer[sizeof(struct vhost_memory) + REGION_LIMIT * sizeof(struct vhost_memory_region)] = {0};
    struct vhost_memory *table = (struct vhost_memory *)buffer;
    table->nregions = (unsigned)count;
    for (size_t index = 0; index < count; index++)
        table->regions[index] = (struct vhost_memory_region){
            .guest_phys_addr = regions[index].guest_address,
            .memory_size = regions[index].size,
            .userspace_addr = regions[index].host_address,
        };
    return result_or_errno(ioctl(fd, VHOST_SET_MEM_TABLE, table));
}

long host_vhost_set_ring_size(int fd, unsigned ring, unsigned size) {
    struct vhost_vring_state state = {.index = ring, .num = size};
    return result_or_errno(ioctl(fd, VHOST_SET_VRING_NUM, &state));
}

long host_vhost_set_ring_base(int fd, unsigned ring, unsigned base) {
    struct vhost_vring_state state = {.index = ring, .num = base};
    return result_or_errno(ioctl(fd, VHOST_SET_VRING_BASE, &state));
}

long host_vhost_ring_base(int fd, unsigned ring) {
    struct vhost_vring_state state = {.index = ring};
    long result = result_or_errno(ioctl(fd, VHOST_GET_VRING_BASE, &state));
    return result < 0 ? result : state.num;
}

long host_vhost_set_ring_addresses(int fd, unsigned ring, const struct host_vhost_ring *addresses) {
    struct vhost_vring_addr request = {
        .index = ring,
        .desc_user_addr = addresses->descriptors,
        .used_user_addr = addresses->used,
        .avail_user_addr = addresses->available,
    };
    return result_or_errno(ioctl(fd, VHOST_SET_VRING_ADDR, &request));
}

long host_vhost_set_ring_event(int fd, unsigned ring, int event, int eventfd) {
    struct vhost_vring_file file = {.index = ring, .fd = eventfd};
    switch (event) {
    case HOST_VHOST_KICK: return result_or_errno(ioctl(fd, VHOST_SET_VRING_KICK, &file));
    case HOST_VHOST_CALL: return result_or_errno(ioctl(fd, VHOST_SET_VRING_CALL, &file));
    case HOST_VHOST_ERROR: return result_or_errno(ioctl(fd, VHOST_SET_VRING_ERR, &file));
    default: return -EINVAL;
    }
}

long host_vhost_net_set_backend(int fd, unsigned ring, int tap) {
    struct vhost_vring_file file = {.index = ring, .fd = tap};
    return result_or_errno(ioctl(fd, VHOST_NET_SET_BACKEND, &file));
}
