import DeviceModel
import FileShare
import Fuzzing
import GuestMemory
import Host
import Testing
import X86

@testable import Virtio

#if canImport(Glibc)
    import Glibc
#endif

/// A file system device with a folder of its own, and the FUSE requests that its tests need.
final class FileSystemRig {
    let directory: String
    let driver: ModelDriver
    private var unique: UInt64 = 1

    static let tag = "tag"

    init(style: DriverStyle = DriverStyle(), runner: any JobRunner = WorkerPool(name: "test", limit: 4)) throws {
        var template = Array("/tmp/martlet-fs-XXXXXX".utf8CString)
        directory = String(cString: try #require(mkdtemp(&template)))
        for index in 0..<16 {
            let file = Glibc.open("\(directory)/file-\(index)", O_CREAT | O_WRONLY | O_CLOEXEC, 0o644)
            let text = Array("content \(index)".utf8)
            #expect(Glibc.write(file, text, text.count) == text.count)
            close(file)
        }
        driver = try ModelDriver(
            VirtioFileSystem(try FileShare(path: directory), tag: Self.tag, runner: runner), style: style)
        try #require(driver.start())
        try #require(try call(26, 0, fields([7, 38, 1 << 17, .max]) + [UInt8](repeating: 0, count: 48)).error == 0)
    }

    deinit {
        driver.transport.shutDown()
        for index in 0..<16 { unlink("\(directory)/file-\(index)") }
        unlink(directory + "/new")
        rmdir(directory)
    }

    func fields(_ values: [UInt32]) -> [UInt8] {
        values.flatMap { value in (0..<4).map { UInt8(truncatingIfNeeded: value >> UInt32(8 * $0)) } }
    }

    func wide(_ values: UInt64...) -> [UInt8] {
        fields(values.flatMap { [UInt32(truncatingIfNeeded: $0), UInt32($0 >> 32)] })
    }

    func request(_ opcode: UInt32, _ node: UInt64, _ arguments: [UInt8]) -> [UInt8] {
        unique += 2
        return fields([UInt32(40 + arguments.count), opcode]) + wide(unique, node) + fields([0, 0, 0, 0]) + arguments
    }

    struct Reply {
        var error: Int32
        var bytes: [UInt8]
        func u64(_ offset: Int) -> UInt64 { littleEndian(bytes, at: offset, count: 8) }
    }

    func reply(_ used: ModelQueue.Used?) throws -> Reply {
        let used = try #require(used)
        let bytes = used.bytes.prefix(Int(used.written))
        #expect(bytes.count >= 16 && littleEndian(Array(bytes), at: 0, count: 4) == UInt64(bytes.count))
        let error = UInt32(truncatingIfNeeded: littleEndian(Array(bytes), at: 4, count: 4))
        return Reply(error: 0 &- Int32(bitPattern: error), bytes: Array(bytes.dropFirst(16)))
    }

    func call(
        _ opcode: UInt32, _ node: UInt64, _ arguments: [UInt8], room: Int = 256, on driver: ModelDriver? = nil
    ) throws -> Reply {
        // As Linux lays it out: header and arguments, then header and result.
        let bytes = request(opcode, node, arguments)
        let parts: [ModelQueue.Part] = [
            .readable(Array(bytes.prefix(40))), .readable(Array(bytes.dropFirst(40))), .writable(16), .writable(room),
        ].filter { if case .readable(let bytes) = $0 { !bytes.isEmpty } else { true } }
        return try reply((driver ?? self.driver).request(parts, queue: 1))
    }

    func open(_ name: String, _ flags: Int32 = O_RDWR) throws -> (node: UInt64, handle: UInt64) {
        let node = try call(1, 1, Array(name.utf8) + [0]).u64(0)
        return (node, try call(14, node, fields([UInt32(flags), 0])).u64(0))
    }

    func readArguments(_ handle: UInt64, _ count: UInt32) -> [UInt8] {
        wide(handle, 0) + fields([count, 0]) + wide(0) + fields([0, 0])
    }

    func lockArguments(_ handle: UInt64, owner: UInt64, _ type: Int32) -> [UInt8] {
        wide(handle, owner, 0, 9) + fields([UInt32(type), 1, 0, 0])
    }
}

@Suite("The file system device")
struct FileSystemTests {
    @Test("Files through every layout of queues", arguments: DriverStyle.all)
    func files(style: DriverStyle) throws {
        let rig = try FileSystemRig(style: style)
        let (node, handle) = try rig.open("file-3")
        #expect(try rig.call(15, node, rig.readArguments(handle, 100)).bytes == Array("content 3".utf8))
        let data = (0..<20000).map { UInt8(truncatingIfNeeded: $0 ^ $0 >> 8) }
        let written = try rig.call(
            16, node, rig.wide(handle, 0) + rig.fields([20000, 0]) + rig.wide(0) + rig.fields([0, 0]) + data)
        #expect(written.error == 0 && written.bytes.first == 0x20)
        #expect(try rig.call(15, node, rig.readArguments(handle, 30000), room: 30000).bytes == data)
        // Nothing comes back of what is forgotten, on the queue for that.
        let forget = try rig.driver.request([.readable(rig.request(2, node, rig.wide(1)))], queue: 0)
        #expect(forget?.written == 0 && !rig.driver.needsReset)
    }

    @Test("The configuration is tag and queues")
    func configuration() throws {
        let rig = try FileSystemRig()
        #expect(rig.driver.read(UInt64(VirtioPCILayout.device), .double) == 0x00_6761_74)
        #expect(rig.driver.read(UInt64(VirtioPCILayout.device) + 36, .double) == 1)
        #expect(VirtioFileSystem.isTag(String(repeating: "x", count: 36)))
        for text in ["", String(repeating: "x", count: 37), "a\u{0}"] { #expect(!VirtioFileSystem.isTag(text)) }
    }

    @Test("What is no request needs a reset, and that helps")
    func malformed() throws {
        let rig = try FileSystemRig()
        _ = try rig.driver.request([.readable([1, 2, 3]), .writable(100)], queue: 1)
        // A worker's: after the buffer has come back.
        #expect(eventually { rig.driver.needsReset ? true : nil } == true)
        try #require(rig.driver.start())
        #expect(try rig.call(1, 1, Array("file-1".utf8) + [0]).error == EIO)
        #expect(try rig.call(26, 0, rig.fields([7, 38, 0, 0])).error == 0)
        #expect(try rig.call(1, 1, Array("file-1".utf8) + [0]).error == 0)
    }

    @Test("A lock is waited for without keeping others waiting", arguments: [true, false])
    func waitingLock(isImmediate: Bool) throws {
        let rig = try FileSystemRig(runner: isImmediate ? ImmediateRunner() : WorkerPool(name: "test", limit: 4))
        let (node, handle) = try rig.open("file-0")
        #expect(try rig.call(32, node, rig.lockArguments(handle, owner: 1, F_WRLCK)).error == 0)
        try rig.driver.queues[1].submit(
            [.readable(rig.request(33, node, rig.lockArguments(handle, owner: 2, F_WRLCK))), .writable(16)])
        rig.driver.notify(1)
        #expect(try rig.call(15, node, rig.readArguments(handle, 9)).error == 0)
        try rig.driver.queues[1].submit(
            [.readable(rig.request(32, node, rig.lockArguments(handle, owner: 1, F_UNLCK))), .writable(16)])
        rig.driver.notify(1)
        let used = rig.driver.waitForUsed(1, count: 2)
        #expect(used.count == 2)
        for used in used { #expect(try rig.reply(used).error == 0) }
        // At a stop the one that waits is told so, and the device holds nothing.
        try rig.driver.queues[1].submit(
            [.readable(rig.request(33, node, rig.lockArguments(handle, owner: 3, F_WRLCK))), .writable(16)])
        rig.driver.notify(1)
        rig.driver.transport.pause()
        #expect(try rig.reply(rig.driver.waitForUsed(1, count: 1).first).error == EINTR)
        #expect(rig.driver.transport.queues[1].outstanding == 0)
    }

    @Test("A saved device goes on in the middle of traffic", arguments: DriverStyle.all)
    func savedState(style: DriverStyle) throws {
        let rig = try FileSystemRig(style: style)
        let files = try (0..<8).map { try rig.open("file-\($0)") }
        #expect(try rig.call(32, files[0].node, rig.lockArguments(files[0].handle, owner: 1, F_WRLCK)).error == 0)
        func submit(_ index: Int) throws {
            let (node, handle) = files[index]
            let isSubmitted = try rig.driver.queues[1].submit(
                [.readable(rig.request(15, node, rig.readArguments(handle, 100))), .writable(200)])
            #expect(isSubmitted)
        }
        for index in 0..<4 { try submit(index) }
        rig.driver.notify(1)
        rig.driver.transport.pause()
        for index in 4..<8 { try submit(index) }
        let saved = try VirtioPCISavedState(encoded: rig.driver.transport.save().encoded())
        let state = try VirtioFileSystemSavedState(encoded: saved.device)
        #expect(VirtioFileSystemSavedState(tag: Array(FileSystemRig.tag.utf8), share: state.share) == state)
        #expect(state.share.handles.count == 8 && state.share.locks.count == 1)
        rig.driver.transport.device.reset()
        let device = try VirtioFileSystem(
            restoring: state, try FileShare(path: rig.directory), tag: FileSystemRig.tag,
            runner: WorkerPool(name: "test", limit: 4))
        let transport = try VirtioPCIDevice(restoring: saved, device, memory: rig.driver.memory)
        let driver = ModelDriver(continuing: rig.driver, with: transport)
        transport.resume()
        defer { transport.shutDown() }
        let texts = try driver.waitForUsed(1, count: 8).map { String(decoding: try rig.reply($0).bytes, as: UTF8.self) }
        #expect(texts.sorted() == (0..<8).map { "content \($0)" })
        let (node, handle) = files[0]
        #expect(try rig.call(32, node, rig.lockArguments(handle, owner: 2, F_WRLCK), on: driver).error == EAGAIN)
        #expect(throws: SavedStateError.self) {
            try VirtioFileSystem(
                restoring: state, try FileShare(path: rig.directory), tag: "other", runner: ImmediateRunner())
        }
    }

    @Test("Saved states that are damaged")
    func damagedState() throws {
        let rig = try FileSystemRig()
        _ = try rig.open("file-1")
        rig.driver.transport.pause()
        let bytes = rig.driver.transport.save().device
        #expect(throws: Never.self) { try VirtioFileSystemSavedState(encoded: bytes) }
        for count in 0..<bytes.count {
            #expect(throws: SavedStateError.self) {
                try VirtioFileSystemSavedState(encoded: Array(bytes.prefix(count)))
            }
        }
        for seed in FuzzSeeds(count: 300) {
            var generator = SeededGenerator(seed: seed)
            var changed = bytes
            for _ in 0..<3 {
                changed[Int(generator.next() % UInt64(changed.count))] = UInt8(truncatingIfNeeded: generator.next())
            }
            guard let state = try? VirtioFileSystemSavedState(encoded: changed) else { continue }
            _ = try? FileShare(path: rig.directory).restore(state.share)
        }
    }

    @Test("Rings full of noise", .timeLimit(.minutes(10)))
    func noise() throws {
        for seed in FuzzSeeds(seconds: 2) {
            var generator = SeededGenerator(seed: seed)
            let rig = try FileSystemRig(runner: ImmediateRunner())
            for _ in 0..<200 {
                let arguments = (0..<generator.next() % 80).map { _ in UInt8(generator.next() % 4) }
                let bytes = rig.request(UInt32(generator.next() % 52), generator.next() % 4, arguments)
                let cut = generator.next() % 8 == 0 ? Int(generator.next() % 50) : bytes.count
                try rig.driver.queues[1].submit(
                    [.readable(Array(bytes.prefix(cut))), .writable(Int(generator.next() % 300))])
                rig.driver.notify(1)
                _ = try rig.driver.queues[1].collect()
                if rig.driver.needsReset || generator.next() % 50 == 0 || rig.driver.queues[1].freeCount < 2 {
                    try #require(rig.driver.start())
                    _ = try rig.call(26, 0, rig.fields([7, 38, 0, 0]))
                }
            }
            try #require(rig.driver.start())
            #expect(try rig.call(26, 0, rig.fields([7, 38, 0, 0])).error == 0)
            #expect(try rig.call(3, 1, rig.fields([0, 0]) + rig.wide(0)).error == 0)
        }
    }
}
