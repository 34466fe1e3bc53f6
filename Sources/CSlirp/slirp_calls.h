// libslirp 4.7 or later (Debian: libslirp-dev), with the errno of what fails as a negative result.
#ifndef MARTLET_SLIRP_CALLS_H
#define MARTLET_SLIRP_CALLS_H

#include <errno.h>
#include <slirp/libslirp.h>

/// Listens on the host for the guest; addresses and ports in host byte order.
static inline long slirp_publish(Slirp *_Nonnull slirp, int is_udp, uint32_t host_address, int host_port,
                                 uint32_t guest_address, int guest_port) {
    struct in_addr host = {htonl(host_address)}, guest = {htonl(guest_address)};
    errno = 0;
    if (slirp_add_hostfwd(slirp, is_udp, host, host_port, guest, guest_port) >= 0) return 0;
    return errno ? -errno : -EINVAL;
}

#endif
