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

long martlet_map_code_and_data(size_t code_size, size_t data_size, void **writable, void **executable, void **near_data) {
    char *place = mmap(NULL, code_size + data_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (place == MAP_FAILED) return -errno;
    void *code = MAP_FAILED;
    long result = martlet_map_code(code_size, writable, &code);
    if (result == 0) {
        if (mremap(code, code_size, code_size, MREMAP_MAYMOVE | MREMAP_FIXED, place) == MAP_FAILED
            || mprotect(place + code_size, data_size, PROT_READ | PROT_WRITE) != 0) {
            result = -errno;
            munmap(*writable, code_size);
            munmap(code, code_size);
        }
    }
    if (result != 0) {
        munmap(place, code_size + data_size);
        return result;
    }
    *executable = place;
    *near_data = place + code_size;
    return 0;
}

// A second mapping of shared memory: mremap(2) of no bytes. Fails where the host keeps memory that was writable from
// being executed.
static long map_executable(void *data, size_t size, void *place, void **code) {
    *code = mremap(data, 0, size, MREMAP_MAYMOVE | (place ? MREMAP_FIXED : 0), place);
    if (*code == MAP_FAILED) return -errno;
    return mprotect(*code, size, PROT_READ | PROT_EXEC) == 0 ? 0 : -errno;
}

long martlet_map_code_for_perf(size_t size, void **writable, void *executable) {
    void *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return -errno;
    // Tried elsewhere first: what is at `executable` cannot be put back.
    void *code = MAP_FAILED;
    long result = map_executable(data, size, NULL, &code);
    if (code != MAP_FAILED) munmap(code, size);
    if (result != 0) {
        munmap(data, size);
        return result;
    }
    munmap(*writable, size);
    *writable = data;
    return map_executable(data, size, executable, &code) == 0 ? 0 : 1;
}

void martlet_unmap_code(size_t size, void *writable, void *executable) {
    munmap(writable, size);
    munmap(executable, size);
}
