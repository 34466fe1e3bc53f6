#define _GNU_SOURCE
#include "cpu_vector.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U // Linux 6.3: says that executing is meant, where vm.memfd_noexec asks for it
#endif

long martlet_map_code(size_t size, void **writable, void **executable) {
    int fd = memfd_create("martlet-code", MFD_CLOEXEC | MFD_EXEC);
    if (fd < 0 && errno == EINVAL) fd = memfd_create("martlet-code", MFD_CLOEXEC);
    if (fd < 0) return -errno;
    long result = 0;
    void *data = MAP_FAILED, *code = MAP_FAILED;
    if (ftruncate(fd, (off_t)size) == 0) {
        data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (data != MAP_FAILED) code = mmap(NULL, size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    }
    if (code == MAP_FAILED) {
        result = -errno;
        if (data != MAP_FAILED) munmap(data, size);
    } else {
        *writable = data;
        *executable = code;
    }
    close(fd);
    return result;
}

void martlet_unmap_code(size_t size, void *writable, void *executable) {
    munmap(writable, size);
    munmap(executable, size);
}
