// What the tests ask of a Linux guest and busybox does not have, without a C library:
//   guest-tool connect PORT          connects to that port of the host (AF_VSOCK, CID 2), sends standard input and ends
//                                    that direction, then writes what comes to standard output
//   guest-tool echo PORT             listens, says so, takes one connection, and sends back what comes until its end
//   guest-tool lock FILE             locks all of a file for writing (POSIX), waiting for it
//   guest-tool trylock FILE          the same without waiting
//   guest-tool hold FILE             the same, says so, and keeps the lock until standard input ends
//   guest-tool setattr FILE VALUE    sets the extended attribute user.test
//   guest-tool getattr FILE          writes its value
// Status 1: it was refused.
struct sockaddr_vm {
    unsigned short family, reserved;
    unsigned port, cid;
    unsigned char flags, zero[3];
};

struct lock {
    short type, whence;
    long start, count;
    int process;
};

enum {
    READ = 0, WRITE = 1, OPEN = 2, SOCKET = 41, CONNECT = 42, ACCEPT = 43, SHUTDOWN = 48, BIND = 49, LISTEN = 50,
    EXIT = 60, FCNTL = 72, SETXATTR = 188, GETXATTR = 191
};
enum { AF_VSOCK = 40, SOCK_STREAM = 1, ANY = -1, HOST = 2, SHUT_WR = 1 };
enum { O_RDWR = 2, F_SETLK = 6, F_SETLKW = 7, F_WRLCK = 1 };

static long call(long number, long a, long b, long c, long d, long e) {
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

static _Noreturn void end(int status) {
    for (;;) call(EXIT, status, 0, 0, 0, 0);
}

static long require(long result) {
    if (result < 0) end(1);
    return result;
}

static char buffer[1 << 16];

static void copy(long from, long to) {
    for (;;) {
        long count = require(call(READ, from, (long)buffer, sizeof buffer, 0, 0));
        if (count == 0) return;
        for (long done = 0; done < count;)
            done += require(call(WRITE, to, (long)buffer + done, count - done, 0, 0));
    }
}

static void speak(const char *port, int connects) {
    struct sockaddr_vm address = {.family = AF_VSOCK};
    for (; *port; port++) address.port = address.port * 10 + (unsigned)(*port - '0');
    long socket = require(call(SOCKET, AF_VSOCK, SOCK_STREAM, 0, 0, 0));
    if (connects) {
        address.cid = HOST;
        require(call(CONNECT, socket, (long)&address, sizeof address, 0, 0));
        copy(0, socket);
        require(call(SHUTDOWN, socket, SHUT_WR, 0, 0, 0));
        copy(socket, 1);
    } else {
        address.cid = (unsigned)ANY;
        require(call(BIND, socket, (long)&address, sizeof address, 0, 0));
        require(call(LISTEN, socket, 1, 0, 0, 0));
        call(WRITE, 1, (long)"listening\n", 10, 0, 0);
        long connection = require(call(ACCEPT, socket, 0, 0, 0, 0));
        copy(connection, connection);
    }
}

static void lock(const char *path, int waits) {
    long file = require(call(OPEN, (long)path, O_RDWR, 0, 0, 0));
    struct lock range = {.type = F_WRLCK};
    require(call(FCNTL, file, waits ? F_SETLKW : F_SETLK, (long)&range, 0, 0));
}

static long length(const char *text) {
    long count = 0;
    while (text[count]) count++;
    return count;
}

static int is(const char *text, const char *other) {
    while (*text && *text == *other) text++, other++;
    return *text == *other;
}

__attribute__((used)) static _Noreturn void start(long *stack) {
    char **arguments = (char **)(stack + 1);
    long count = stack[0];
    if (count < 3) end(64);
    const char *verb = arguments[1], *what = arguments[2];
    if (is(verb, "connect") || is(verb, "echo")) {
        speak(what, is(verb, "connect"));
    } else if (is(verb, "lock") || is(verb, "trylock")) {
        lock(what, is(verb, "lock"));
    } else if (is(verb, "hold")) {
        lock(what, 0);
        call(WRITE, 1, (long)"locked\n", 7, 0, 0);
        copy(0, 1);
    } else if (is(verb, "setattr") && count == 4) {
        require(call(SETXATTR, (long)what, (long)"user.test", (long)arguments[3], length(arguments[3]), 0));
    } else if (is(verb, "getattr")) {
        long size = require(call(GETXATTR, (long)what, (long)"user.test", (long)buffer, sizeof buffer, 0));
        require(call(WRITE, 1, (long)buffer, size, 0, 0));
    } else {
        end(64);
    }
    end(0);
}

__attribute__((naked)) void _start(void) {
    __asm__("mov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start");
}
