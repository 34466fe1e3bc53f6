import Glibc
import Host
import Synchronization
import Testing

private let hasIOUring = (try? SubmissionRing()) != nil

/// What operations ended with, in the order in which they did.
private final class Results: Sendable {
    private let list = Mutex<[(Int, Int)]>([])

    func store(_ number: Int, _ result: Int) { list.withLock { $0.append((number, result)) } }
    var count: Int { list.withLock { $0.count } }
    subscript(number: Int) -> Int? { list.withLock { list in list.first { $0.0 == number }?.1 } }

    /// Reaps until so many have ended.
    func wait(for count: Int, _ ring: SubmissionRing) throws {
        let end = HostClock.monotonicNanoseconds + 60_000_000_000
        while self.count < count, HostClock.monotonicNanoseconds < end {
            var poll = DescriptorPoll()
            poll.set(ring.completions.descriptor, .readable)
            _ = try poll.wait(timeoutNanoseconds: 100_000_000)
            _ = ring.completions.consume()
            ring.reap()
        }
        try #require(self.count == count)
    }
}

/// Both ends of a pipe.
private final class Pipe {
    let read: FileDescriptor
    private var writer: FileDescriptor?

    init() throws {
        let pipe = try Host.Pipe()
        writer = FileDescriptor(owning: fcntl(pipe.writing.rawValue, F_DUPFD_CLOEXEC, 0))
        read = pipe.keepReading()
    }

    func write(_ bytes: [UInt8]) throws { try writer?.write(bytes) }
    func closeWriter() { writer = nil }
    var writerDescriptor: BorrowedDescriptor? { writer?.borrowed }
}

@Suite("io_uring", .enabled(if: hasIOUring, "this host forbids io_uring"))
struct SubmissionRingTests {
    @Test("Many operations in one system call, in pieces and whole")
    func transfers() throws {
        let ring = try SubmissionRing()
        let file = try BlockFile(unnamedIn: "/tmp")
        let results = Results()
        let bytes = (0..<64 << 10).map { UInt8(truncatingIfNeeded: $0 / 1024 &* 7) }
        let source = PageBuffer(bytes)
        for block in 0..<32 {
            let start = block * 2048
            let memory = TransferMemory(joining: [
                source.memory(start..<start + 100), source.memory(start + 100..<start + 2048),
            ])
            ring.write(memory, to: file.descriptor, at: UInt64(start)) { results.store(block, $0) }
        }
        #expect(ring.inFlight == 32 && ring.submissionCount == 0)
        ring.submit()
        #expect(ring.submissionCount == 1)
        try results.wait(for: 32, ring)
        #expect((0..<32).allSatisfy { results[$0] == 2048 })
        let target = PageBuffer(count: bytes.count)
        for block in 0..<16 {
            ring.read(
                into: target.memory(block * 4096..<(block + 1) * 4096), from: file.descriptor, at: UInt64(block) * 4096
            ) { results.store(100 + block, $0) }
        }
        ring.submit()
        try results.wait(for: 48, ring)
        #expect(ring.submissionCount == 2 && ring.inFlight == 0)
        #expect(target.bytes == bytes)
    }

    @Test("What the kernel does at once does not signal, what it does later does")
    func signals() throws {
        let ring = try SubmissionRing()
        let results = Results()
        let pipe = try Pipe()
        try pipe.write([1, 2])
        let buffer = PageBuffer(count: 2)
        ring.read(into: buffer.memory, from: pipe.read.borrowed, at: 0) { results.store(0, $0) }
        ring.submit()
        ring.reap()
        #expect(results[0] == 2)
        #expect(ring.completions.consume() == 0)
        ring.read(into: buffer.memory, from: pipe.read.borrowed, at: 0) { results.store(1, $0) }
        ring.submit()
        ring.reap()
        #expect(results[1] == nil && ring.inFlight == 1)
        try pipe.write([3, 4])
        try results.wait(for: 2, ring)
        #expect(results[1] == 2 && buffer.bytes == [3, 4])
    }

    @Test("A transfer that comes in parts goes on until it is whole, or the file ends", arguments: [false, true])
    func partialTransfers(inPieces: Bool) throws {
        let ring = try SubmissionRing()
        let results = Results()
        let pipe = try Pipe()
        let buffer = PageBuffer(count: 100)
        let memory =
            inPieces ? TransferMemory(joining: [buffer.memory(0..<10), buffer.memory(10..<100)]) : buffer.memory
        ring.read(into: memory, from: pipe.read.borrowed, at: 0) { results.store(0, $0) }
        ring.submit()
        for part in 0..<4 {
            try pipe.write([UInt8](repeating: UInt8(part + 1), count: 25))
            HostClock.sleep(nanoseconds: 5_000_000)
            ring.reap()
        }
        try results.wait(for: 1, ring)
        #expect(results[0] == 100)
        #expect(buffer.bytes == (0..<4).flatMap { [UInt8](repeating: UInt8($0 + 1), count: 25) })
        ring.read(into: memory, from: pipe.read.borrowed, at: 0) { results.store(1, $0) }
        ring.submit()
        try pipe.write([9, 9, 9])
        pipe.closeWriter()
        try results.wait(for: 2, ring)
        #expect(results[1] == 3)
        let file = try BlockFile(unnamedIn: "/tmp")
        try file.truncate(to: 60)
        ring.read(into: memory, from: file.descriptor, at: 10) { results.store(2, $0) }
        ring.read(into: memory, from: file.descriptor, at: 60) { results.store(3, $0) }
        ring.submit()
        try results.wait(for: 4, ring)
        #expect(results[2] == 50 && results[3] == 0)
    }

    @Test("Errors are the operation's alone")
    func errors() throws {
        let ring = try SubmissionRing()
        let results = Results()
        let buffer = PageBuffer(count: 512)
        let full = try FileDescriptor.open("/dev/full", .readWrite)
        let file = try BlockFile(unnamedIn: "/tmp")
        ring.read(into: buffer.memory, from: BorrowedDescriptor(-1), at: 0) { results.store(0, $0) }
        ring.write(buffer.memory, to: full.borrowed, at: 0) { results.store(1, $0) }
        ring.write(buffer.memory, to: file.descriptor, at: 0) { results.store(2, $0) }
        ring.read(into: PageBuffer(count: 0).memory, from: BorrowedDescriptor(-1), at: 0) { results.store(3, $0) }
        ring.submit()
        try results.wait(for: 4, ring)
        #expect(results[0] == Int(-EBADF) && results[1] == Int(-ENOSPC) && results[2] == 512 && results[3] == 0)
    }

    @Test("More operations than the ring has entries")
    func manyOperations() throws {
        let ring = try SubmissionRing(entries: 4)
        let file = try BlockFile(unnamedIn: "/tmp")
        try file.truncate(to: 1 << 20)
        let results = Results()
        let buffers = (0..<300).map { _ in PageBuffer(count: 4096) }
        for (index, buffer) in buffers.enumerated() {
            ring.read(into: buffer.memory, from: file.descriptor, at: UInt64(index % 256) * 4096) {
                results.store(index, $0)
            }
        }
        ring.submit()
        try results.wait(for: 300, ring)
        #expect((0..<300).allSatisfy { results[$0] == 4096 })
        #expect(ring.inFlight == 0)
    }

    @Test("The end of a thread loses none of its operations")
    func threadEnds() throws {
        let ring = try SubmissionRing()
        let results = Results()
        let pipe = try Pipe()
        let buffer = PageBuffer(count: 8)
        let descriptor = pipe.read.borrowed
        let thread = try HostThread(name: "submits") {
            ring.read(into: buffer.memory, from: descriptor, at: 0) { results.store(0, $0) }
            ring.submit()
        }
        thread.join()
        try pipe.write([1, 2, 3, 4, 5, 6, 7, 8])
        try results.wait(for: 1, ring)
        // Which of the two is the kernel's affair.
        #expect(results[0] == 8 || results[0] == Int(-ECANCELED))
    }

    @Test("Timers")
    func timers() throws {
        let ring = try SubmissionRing()
        let results = Results()
        let start = HostClock.monotonicNanoseconds
        ring.wait(nanoseconds: 30_000_000) { results.store(1, 0) }
        ring.wait(nanoseconds: 10_000_000) { results.store(0, 0) }
        ring.submit()
        ring.reap()
        #expect(results.count == 0)
        try results.wait(for: 2, ring)
        #expect(HostClock.monotonicNanoseconds - start >= 30_000_000)
    }
}
