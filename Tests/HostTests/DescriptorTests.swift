import Glibc
import Host
import Testing

@Suite struct DescriptorTests {
    /// A file of our own that goes with the test.
    private func withFile(_ bytes: [UInt8], _ body: (String) throws -> Void) throws {
        let path = "/tmp/martlet-host-test-\(getpid())-\(ThreadID.current.rawValue)-\(HostClock.monotonicNanoseconds)"
        defer { unlink(path) }
        try FileDescriptor.open(path, .create).write(bytes)
        try body(path)
    }

    @Test func missingFileNamesPathAndReason() {
        #expect(throws: HostError("Cannot open /nonexistent/file", errorNumber: ENOENT)) {
            _ = try FileDescriptor.open("/nonexistent/file")
        }
        let error = HostError("Cannot open /nonexistent/file", errorNumber: ENOENT)
        #expect("\(error)" == "Cannot open /nonexistent/file: No such file or directory")
    }

    @Test(
        arguments: [
            (0, 4, [1, 2, 3, 4]), (3, 2, [4, 5]), (3, 10, [4, 5]), (5, 1, []), (900, 1, []), (0, 0, []), (0, -1, []),
        ] as [(UInt64, Int, [UInt8])])
    func randomAccess(offset: UInt64, count: Int, expected: [UInt8]) throws {
        try withFile([1, 2, 3, 4, 5]) { path in
            let file = try RandomAccessFile(path: path)
            #expect(file.size == 5)
            #expect(try file.read(count: count, at: offset) == expected)
        }
    }

    @Test func wholeFileWithinItsLimit() throws {
        try withFile([UInt8](repeating: 7, count: 100_000)) { path in
            let file = try RandomAccessFile(path: path)
            #expect(try file.readAll(limit: 100_000).count == 100_000)
            #expect(throws: HostError("Cannot load \(path)", errorNumber: EFBIG)) {
                _ = try file.readAll(limit: 99_999)
            }
        }
    }

    @Test(arguments: [("/tmp", EISDIR), ("/dev/null", EINVAL)])
    func onlyRegularFiles(path: String, errorNumber: Int32) {
        #expect(throws: HostError("Cannot use \(path)", errorNumber: errorNumber)) {
            _ = try RandomAccessFile(path: path)
        }
    }

    @Test func closesWithItsOwner() throws {
        try withFile([1]) { path in
            let number: Int32
            do {
                let file = try FileDescriptor.open(path)
                number = fcntl(file.rawValue, F_DUPFD_CLOEXEC, 500)
            }
            var ours = stat()
            try #require(fstat(number, &ours) == 0)
            do { _ = FileDescriptor(owning: number) }
            // Another test may have got the number since, but not for this file.
            var found = stat()
            let isOpen = fstat(number, &found) == 0 && found.st_dev == ours.st_dev && found.st_ino == ours.st_ino
            #expect(!isOpen)
        }
    }

    /// More than a pipe holds: the writer has to wait for the reader.
    @Test func writesAllToAFullPipe() throws {
        let pipe = try Pipe()
        let output = fcntl(pipe.writing.rawValue, F_DUPFD_CLOEXEC, 0)
        let input = pipe.keepReading()
        let bytes = (0..<300_000).map { UInt8(truncatingIfNeeded: $0) }
        let writer = try HostThread(name: "writer") {
            let output = FileDescriptor(owning: output)
            try? output.borrowed.setNonBlocking(true)
            try? output.write(bytes)
        }
        var received: [UInt8] = []
        while true {
            let chunk = try input.read(upTo: 70_000)
            if chunk.isEmpty { break }
            received += chunk
        }
        writer.join()
        #expect(received == bytes)
    }
}

@Suite struct EventTests {
    @Test func notifierCounts() throws {
        let notifier = try EventNotifier()
        #expect(notifier.consume() == 0)
        notifier.signal()
        notifier.signal()
        #expect(notifier.consume() == 2)
        #expect(notifier.consume() == 0)
    }

    @Test func pollSeesOnlyWhatIsReady() throws {
        let (first, second) = (try EventNotifier(), try EventNotifier())
        var poll = DescriptorPoll()
        poll.set(first.descriptor, .readable)
        poll.set(second.descriptor, .readable)
        #expect(try poll.wait(timeoutNanoseconds: 0).isEmpty)
        second.signal()
        #expect(try poll.wait(timeoutNanoseconds: nil).map(\.descriptor) == [second.descriptor])
        poll.remove(second.descriptor)
        #expect(try poll.wait(timeoutNanoseconds: 0).isEmpty)
        poll.set(second.descriptor, [.readable, .writable])
        let ready = try #require(try poll.wait(timeoutNanoseconds: 0).first)
        #expect(ready.isReadable && ready.isWritable && !ready.isHungUp)
    }

    @Test func pollTimesOut() throws {
        let start = HostClock.monotonicNanoseconds
        #expect(try DescriptorPoll().wait(timeoutNanoseconds: 20_000_000).isEmpty)
        #expect(HostClock.monotonicNanoseconds - start >= 20_000_000)
    }

    @Test func signalsBecomeEvents() throws {
        // In a thread of its own: the mask must not stay with one of the test library's.
        let received = try onThread {
            let source = try SignalSource([Signal(SIGUSR2)])
            guard source.next() == nil else { return nil as Signal? }
            pthread_kill(pthread_self(), SIGUSR2)
            return source.next()
        }
        #expect(received == Signal(SIGUSR2))
    }
}

/// Runs `body` in a thread of its own and returns what it returned.
func onThread<T: Sendable>(_ body: @escaping @Sendable () throws -> T) throws -> T {
    let box = ResultBox<T>()
    let thread = try HostThread(name: "test") { box.store(Result { try body() }) }
    thread.join()
    return try #require(box.load()).get()
}
