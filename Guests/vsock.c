// Stream sockets between guest and host, for the tests, without a C library:
//   vsock connect PORT   connects to that port of the host (CID 2), sends standard input and ends that direction, then
//                        writes what comes to standard output
//   vsock echo PORT      listens, takes one connection, and sends back what comes until its end
// Status 1: the connection was refused or broke.
typedef unsigned long size_type;

struct sockaddr_vm {
    unsigned short family, reserved;
    unsigned port, cid;
    unsigned char flags, zero[3];
};

enum { READ = 0, WRITE = 1, SOCKET = 41, CONNECT = 42, ACCEPT = 43, SHUTDOWN = 48, BIND = 49, LISTEN = 50, EXIT = 60 };
enum { AF_VSOCK = 40, SOCK_STREAM = 1, ANY = -1, HOST = 2, SHUT_WR = 1 };

static long call(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

static _Noreturn void end(int status) {
    for (;;) call(EXIT, status, 0, 0);
}

static long require(long result) {
    if (result < 0) end(1);
    return result;
}

static char buffer[1 << 16];

static void copy(long from, long to) {
    for (;;) {
        long count = require(call(READ, from, (long)buffer, sizeof buffer));
        if (count == 0) return;
        for (long done = 0; done < count;) done += require(call(WRITE, to, (long)buffer + done, count - done));
    }
}

__attribute__((used)) static _Noreturn void start(long *stack) {
    char **arguments = (char **)(stack + 1);
    if (stack[0] != 3) end(64);
    struct sockaddr_vm address = {.family = AF_VSOCK};
    for (char *digit = arguments[2]; *digit; digit++) address.port = address.port * 10 + (unsigned)(*digit - '0');
    long socket = require(call(SOCKET, AF_VSOCK, SOCK_STREAM, 0));
    if (arguments[1][0] == 'c') {
        address.cid = HOST;
        require(call(CONNECT, socket, (long)&address, sizeof address));
        copy(0, socket);
        require(call(SHUTDOWN, socket, SHUT_WR, 0));
        copy(socket, 1);
    } else {
        address.cid = (unsigned)ANY;
        require(call(BIND, socket, (long)&address, sizeof address));
        require(call(LISTEN, socket, 1, 0));
        call(WRITE, 1, (long)"listening\n", 10);
        long connection = require(call(ACCEPT, socket, 0, 0));
        copy(connection, connection);
    }
    end(0);
}

__attribute__((naked)) void _start(void) {
    __asm__("mov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start");
}
