import Host
import Synchronization

@testable import FileShare

#if canImport(Glibc)
    import Glibc
#endif

/// One request in memory of the test's own, as a transport would have it.
final class TestBuffers: ShareRequestBuffers {
    private let request: UnsafeMutableRawBufferPointer
    private let reply: UnsafeMutableRawBufferPointer

    init(_ bytes: [UInt8], replyLimit: Int) {
        request = .allocate(byteCount: bytes.count + 1, alignment: 16)
        request.copyBytes(from: bytes)
        requestCount = bytes.count
        reply = .allocate(byteCount: replyLimit + 1, alignment: 16)
        self.replyLimit = replyLimit
    }

    deinit {
        request.deallocate()
        reply.deallocate()
    }

    let requestCount: Int
    let replyLimit: Int

    private func isInside(_ offset: Int, _ count: Int, _ limit: Int) -> Bool {
        offset >= 0 && count >= 0 && offset + count <= limit
    }

    func read(at offset: Int, count: Int) -> [UInt8]? {
        isInside(offset, count, requestCount) ? Array(request[offset..<offset + count]) : nil
    }

    func write(_ bytes: [UInt8], at offset: Int) -> Bool {
        guard isInside(offset, bytes.count, replyLimit) else { return false }
        UnsafeMutableRawBufferPointer(rebasing: reply[offset..<offset + bytes.count]).copyBytes(from: bytes)
        return true
    }

    /// In two pieces, as guests have it.
    private func pieces(_ memory: UnsafeMutableRawBufferPointer, _ offset: Int, _ count: Int) -> IOSegments {
        let half = offset + count / 2
        return IOSegments(
            [
                UnsafeMutableRawBufferPointer(rebasing: memory[offset..<half]),
                UnsafeMutableRawBufferPointer(rebasing: memory[half..<offset + count]),
            ], owner: self)
    }

    func source(at offset: Int, count: Int) -> IOSegments? {
        isInside(offset, count, requestCount) ? pieces(request, offset, count) : nil
    }

    func target(at offset: Int, count: Int) -> IOSegments? {
        isInside(offset, count, replyLimit) ? pieces(reply, offset, count) : nil
    }

    func noteFilled(at offset: Int, count: Int) {}

    func bytes(_ count: Int) -> [UInt8] { Array(reply[0..<min(count, replyLimit)]) }
}

/// Bytes of a request's arguments.
struct Arguments {
    var bytes: [UInt8] = []

    func u32(_ values: UInt32...) -> Arguments { adding(values) }
    func u64(_ values: UInt64...) -> Arguments { adding(values) }
    func name(_ text: String) -> Arguments { Arguments(bytes: bytes + Array(text.utf8) + [0]) }
    func data(_ data: [UInt8]) -> Arguments { Arguments(bytes: bytes + data) }

    private func adding<T: FixedWidthInteger>(_ values: [T]) -> Arguments {
        var result = bytes
        for value in values { withUnsafeBytes(of: value.littleEndian) { result += $0 } }
        return Arguments(bytes: result)
    }
}

func number(_ bytes: some Collection<UInt8>, _ offset: Int, _ count: Int) -> UInt64 {
    bytes.dropFirst(offset).prefix(count).enumerated().reduce(0) { $0 | UInt64($1.element) << UInt64(8 * $1.offset) }
}

/// A guest's side of a share.
final class ShareClient {
    struct Reply: Equatable {
        /// Positive; 0: it was done.
        var error: Int32
        /// Behind the header.
        var bytes: [UInt8]

        func u32(_ offset: Int) -> UInt32 { UInt32(number(bytes, offset, 4)) }
        func u64(_ offset: Int) -> UInt64 { number(bytes, offset, 8) }
    }

    /// struct fuse_entry_out, as far as the tests look.
    struct Entry {
        var node: UInt64
        var inode: UInt64
        var size: UInt64
        var mode: UInt32
        var links: UInt32
        var user: UInt32
        var group: UInt32

        init(_ reply: Reply) {
            node = reply.u64(0)
            inode = reply.u64(40)
            size = reply.u64(48)
            mode = reply.u32(40 + 60)
            links = reply.u32(40 + 64)
            user = reply.u32(40 + 68)
            group = reply.u32(40 + 72)
        }
    }

    let share: FileShare
    var user: UInt32 = 0
    var group: UInt32 = 0
    private(set) var unique: UInt64 = 100

    init(_ share: FileShare) { self.share = share }

    func header(_ opcode: UInt32, _ node: UInt64, length: Int) -> [UInt8] {
        unique += 2
        return Arguments().u32(UInt32(length), opcode).u64(unique, node).u32(user, group, 1, 0).bytes
    }

    func serve(_ opcode: UInt32, _ node: UInt64, _ arguments: Arguments, room: Int = 8192) -> (
        ShareOutcome, TestBuffers
    ) {
        let bytes = header(opcode, node, length: 40 + arguments.bytes.count) + arguments.bytes
        let buffers = TestBuffers(bytes, replyLimit: room)
        return (share.serve(buffers), buffers)
    }

    @discardableResult
    func call(_ opcode: UInt32, _ node: UInt64 = 1, _ arguments: Arguments = Arguments(), room: Int = 8192) -> Reply {
        let (outcome, buffers) = serve(opcode, node, arguments, room: room)
        guard case .done(let written) = outcome, written >= 16 else { return Reply(error: -1, bytes: []) }
        let bytes = buffers.bytes(written)
        precondition(Int(number(bytes, 0, 4)) == written && number(bytes, 8, 8) == unique)
        return Reply(error: 0 &- Int32(bitPattern: UInt32(number(bytes, 4, 4))), bytes: Array(bytes.dropFirst(16)))
    }

    // MARK: Operations

    func initialize(flags: UInt32 = .max) -> Reply {
        call(26, 0, Arguments().u32(7, 38, 1 << 17, flags).data([UInt8](repeating: 0, count: 48)))
    }

    func lookUp(_ name: String, in node: UInt64 = 1) -> Reply { call(1, node, Arguments().name(name)) }

    /// The node at a path of several names; 0 where there is none.
    func find(_ path: String) -> UInt64 {
        path.split(separator: "/").reduce(1) { node, name in
            let reply = lookUp(String(name), in: node)
            return node != 0 && reply.error == 0 ? reply.u64(0) : 0
        }
    }

    func open(_ node: UInt64, _ flags: Int32 = O_RDONLY) -> Reply { call(14, node, Arguments().u32(UInt32(flags), 0)) }
    func openDirectory(_ node: UInt64) -> Reply { call(27, node, Arguments().u32(0, 0)) }

    func create(_ name: String, in node: UInt64 = 1, flags: Int32 = O_RDWR, mode: UInt32 = 0o644) -> Reply {
        call(35, node, Arguments().u32(UInt32(flags | O_CREAT), mode, 0, 0).name(name))
    }

    func read(_ node: UInt64, _ handle: UInt64, at offset: UInt64, count: Int) -> Reply {
        call(
            15, node, Arguments().u64(handle, offset).u32(UInt32(count), 0).u64(0).u32(0, 0), room: 16 + count)
    }

    func write(_ node: UInt64, _ handle: UInt64, _ bytes: [UInt8], at offset: UInt64, flags: UInt32 = 0) -> Reply {
        call(
            16, node,
            Arguments().u64(handle, offset).u32(UInt32(bytes.count), flags).u64(0).u32(0, 0).data(bytes))
    }

    func release(_ node: UInt64, _ handle: UInt64, isDirectory: Bool = false) -> Reply {
        call(isDirectory ? 29 : 18, node, Arguments().u64(handle).u32(0, 0).u64(0))
    }

    func attributes(_ node: UInt64) -> Reply { call(3, node, Arguments().u32(0, 0).u64(0)) }

    func forget(_ node: UInt64, _ count: UInt64 = 1) { _ = serve(2, node, Arguments().u64(count), room: 0) }

    func setAttributes(
        _ node: UInt64, valid: UInt32, handle: UInt64 = 0, size: UInt64 = 0, times: [UInt64] = [0, 0],
        nanoseconds: [UInt32] = [0, 0], mode: UInt32 = 0, user: UInt32 = 0, group: UInt32 = 0
    ) -> Reply {
        call(
            4, node,
            Arguments().u32(valid, 0).u64(handle, size, 0, times[0], times[1], 0)
                .u32(nanoseconds[0], nanoseconds[1], 0, mode, 0, user, group, 0))
    }

    func lock(
        _ opcode: UInt32, _ node: UInt64, _ handle: UInt64, owner: UInt64, _ type: Int32, _ range: ClosedRange<UInt64>
    ) -> Reply { call(opcode, node, lockArguments(handle, owner, type, range)) }

    func lockArguments(_ handle: UInt64, _ owner: UInt64, _ type: Int32, _ range: ClosedRange<UInt64>) -> Arguments {
        Arguments().u64(handle, owner, range.lowerBound, range.upperBound).u32(UInt32(type), 42, 0, 0)
    }

    /// All names of a directory, as READDIR or READDIRPLUS gives them in replies of `room` bytes.
    func list(_ node: UInt64, plus: Bool, room: Int = 4096) -> [(name: String, node: UInt64)]? {
        let opened = openDirectory(node)
        guard opened.error == 0 else { return nil }
        defer { _ = release(node, opened.u64(0), isDirectory: true) }
        var result: [(String, UInt64)] = []
        var offset: UInt64 = 0
        while true {
            let reply = call(
                plus ? 44 : 28, node,
                Arguments().u64(opened.u64(0), offset).u32(UInt32(room), 0).u64(0).u32(0, 0), room: 16 + room)
            guard reply.error == 0 else { return nil }
            if reply.bytes.isEmpty { return result }
            var position = 0
            while position < reply.bytes.count {
                let child = plus ? reply.u64(position) : 0
                if plus { position += 128 }
                offset = reply.u64(position + 8)
                let length = Int(reply.u32(position + 16))
                let name = reply.bytes[position + 24..<position + 24 + length]
                result.append((String(decoding: name, as: UTF8.self), child))
                position += (24 + length + 7) & ~7
            }
        }
    }
}

/// A folder of the host that goes with its owner, and something beside it that nobody may reach.
final class Folder {
    let outer: String
    var path: String { outer + "/shared" }
    static let secret = "nobody outside may read this"

    init() {
        var template = Array("/tmp/martlet-share-XXXXXX".utf8CString)
        guard let made = mkdtemp(&template) else { fatalError("no folder for the test") }
        outer = String(cString: made)
        mkdir(path, 0o755)
        write(Self.secret, to: outer + "/secret")
        mkdir(outer + "/outside", 0o755)
        write(Self.secret, to: outer + "/outside/secret")
    }

    deinit {
        // What a test has left behind by accident is in /tmp.
        _ = removeTree(outer)
    }

    func host(_ name: String) -> String { path + "/" + name }

    func write(_ text: String, to path: String) {
        let file = fopen(path, "we")
        fwrite(Array(text.utf8), 1, text.utf8.count, file)
        fclose(file)
    }

    func make(_ name: String, _ text: String = "") { write(text, to: host(name)) }

    /// What a file of the host has; nil: there is none.
    static func content(_ path: String) -> [UInt8]? {
        guard let file = fopen(path, "re") else { return nil }
        defer { fclose(file) }
        var bytes = [UInt8](repeating: 0, count: 1 << 22)
        let count = fread(&bytes, 1, bytes.count, file)
        return Array(bytes.prefix(count))
    }

    /// Nothing beside the folder has changed.
    var isOutsideUntouched: Bool {
        Self.content(outer + "/secret") == Array(Self.secret.utf8)
            && Self.content(outer + "/outside/secret") == Array(Self.secret.utf8)
            && Set(Self.names(outer)) == ["secret", "outside", "shared"] && Self.names(outer + "/outside") == ["secret"]
    }

    static func names(_ path: String) -> [String] {
        guard let directory = opendir(path) else { return [] }
        defer { closedir(directory) }
        var result: [String] = []
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != ".", name != ".." { result.append(name) }
        }
        return result.sorted()
    }
}

/// Removes a tree, without following symbolic links.
private func removeTree(_ path: String) -> Int32 {
    var status = stat()
    guard lstat(path, &status) == 0 else { return -1 }
    guard status.st_mode & FileMode.typeMask == FileMode.directory else { return unlink(path) }
    chmod(path, 0o700)
    for name in Folder.names(path) where removeTree(path + "/" + name) != 0 { return -1 }
    return rmdir(path)
}

/// fcntl(2): locks of an open file, as another process of the host would have them.
enum HostLock {
    static let get: Int32 = 36
    static let set: Int32 = 37
}
