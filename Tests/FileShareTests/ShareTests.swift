import CHost
import Host
import Testing

@testable import FileShare

#if canImport(Glibc)
    import Glibc
#endif

@Suite("A shared folder")
struct ShareTests {
    private let folder = Folder()

    private func client(isReadOnly: Bool = false) throws -> ShareClient {
        let client = ShareClient(try FileShare(path: folder.path, isReadOnly: isReadOnly))
        try #require(client.initialize().error == 0)
        return client
    }

    private func stat(_ path: String) -> Glibc.stat {
        var status = Glibc.stat()
        #expect(lstat(path, &status) == 0, "\(path)")
        return status
    }

    // MARK: Protocol

    @Test("What a version of the protocol is answered")
    func versions() throws {
        let share = try FileShare(path: folder.path)
        let client = ShareClient(share)
        #expect(client.lookUp("x").error == EIO)
        let tail = [UInt8](repeating: 0, count: 48)
        for (major, minor, error) in [(6, 38, EPROTO), (7, 30, EPROTO), (7, 31, 0), (7, 38, 0), (7, 45, 0), (8, 0, 0)]
            as [(UInt32, UInt32, Int32)]
        {
            let reply = client.call(26, 0, Arguments().u32(major, minor, 1 << 17, .max).data(tail))
            #expect(reply.error == error, "\(major).\(minor)")
            if error == 0 { #expect(reply.u32(0) == 7 && reply.u32(4) == 38 && reply.bytes.count == 64) }
        }
        let reply = client.initialize()
        #expect(reply.u32(12) == FUSE.Feature.offered)
        #expect(reply.u32(20) == 1 << 20)
        #expect(number(reply.bytes, 28, 2) == 256)
        #expect(client.initialize(flags: 1).u32(12) == 1)
        #expect(client.call(47 + 100).error == ENOSYS)
    }

    @Test(
        "Names that are no names",
        arguments: [
            ("..", EINVAL), (".", EINVAL), ("a/b", EINVAL), ("/etc", EINVAL), ("", ENOENT),
            (String(repeating: "x", count: 256), ENAMETOOLONG), ("../secret", EINVAL), ("...", ENOENT),
            (String(repeating: "x", count: 255), ENOENT),
        ] as [(String, Int32)])
    func badNames(name: String, error: Int32) throws {
        let client = try client()
        folder.make("file")
        #expect(client.lookUp(name).error == error)
        guard error != ENOENT || name.isEmpty else { return }
        #expect(client.create(name).error == error)
        #expect(client.call(9, 1, Arguments().u32(0o755, 0).name(name)).error == error)
        #expect(client.call(8, 1, Arguments().u32(0o100644, 0, 0, 0).name(name)).error == error)
        #expect(client.call(6, 1, Arguments().name(name).name("x")).error == error)
        #expect(client.call(10, 1, Arguments().name(name)).error == error)
        #expect(client.call(11, 1, Arguments().name(name)).error == error)
        #expect(client.call(12, 1, Arguments().u64(1).name(name).name("b")).error == error)
        #expect(client.call(12, 1, Arguments().u64(1).name("file").name(name)).error == error)
        #expect(client.call(45, 1, Arguments().u64(1).u32(0, 0).name("file").name(name)).error == error)
        #expect(client.call(13, 1, Arguments().u64(client.find("file")).name(name)).error == error)
        #expect(Folder.names(folder.path) == ["file"])
        #expect(folder.isOutsideUntouched)
    }

    @Test("A name without an end, and arguments that are too short")
    func shortRequests() throws {
        let client = try client()
        #expect(client.call(1, 1, Arguments(bytes: Array("abc".utf8))).error == EINVAL)
        for opcode in [3, 4, 8, 9, 12, 13, 14, 15, 16, 18, 20, 21, 22, 25, 31, 32, 33, 34, 35, 43, 45, 46, 47]
            as [UInt32]
        {
            #expect(client.call(opcode, 1, Arguments().u32(1)).error == EINVAL, "\(opcode)")
        }
        // A header that claims more or less than there is.
        for length in [0, 39, 41, 1 << 20] {
            let buffers = TestBuffers(client.header(3, 1, length: length), replyLimit: 200)
            _ = share(client, buffers)
            #expect(number(buffers.bytes(16), 4, 4) == UInt64(UInt32(bitPattern: -EINVAL)))
        }
        let noRoom = TestBuffers(client.header(3, 1, length: 40), replyLimit: 15)
        guard case .malformed = share(client, noRoom) else { return #expect(Bool(false), "no room, no trouble") }
        let noHeader = TestBuffers([1, 2, 3], replyLimit: 100)
        guard case .malformed = share(client, noHeader) else { return #expect(Bool(false), "no header, no trouble") }
    }

    private func share(_ client: ShareClient, _ buffers: TestBuffers) -> ShareOutcome { client.share.serve(buffers) }

    // MARK: Out of the folder

    @Test("Symbolic links are told and never followed")
    func symbolicLinks() throws {
        let client = try client()
        for (name, target) in [
            ("up", ".."), ("abs", folder.outer + "/outside"), ("file", "../secret"), ("loop", "loop"),
        ] {
            #expect(client.call(6, 1, Arguments().name(name).name(target)).error == 0)
            let node = client.find(name)
            #expect(client.call(5, node).bytes == Array(target.utf8))
            #expect(client.lookUp("secret", in: node).error == ENOTDIR)
            #expect(client.open(node).error == ENXIO)
            #expect(client.openDirectory(node).error == ENOTDIR)
            #expect(client.create("new", in: node).error == ENOTDIR)
            #expect(client.create(name).error == ENXIO)
            #expect(client.setAttributes(node, valid: 1, mode: 0o777).error == EOPNOTSUPP)
            #expect(client.setAttributes(node, valid: 8, size: 0).error == EINVAL)
        }
        #expect(client.call(6, 1, Arguments().name("empty").name("")).error == ENOENT)
        #expect(
            client.call(6, 1, Arguments().name("long").name(String(repeating: "x", count: 4096))).error == ENAMETOOLONG)
        #expect(folder.isOutsideUntouched)
    }

    @Test("A directory that becomes a symbolic link, or another directory, behind our back")
    func swappedDirectory() throws {
        let client = ShareClient(try FileShare(path: folder.path, nodeLimit: 1000, descriptorLimit: 4, handleLimit: 10))
        _ = client.initialize()
        for name in ["d", "e"] {
            mkdir(folder.host(name), 0o755)
            folder.make(name + "/secret", "inside")
        }
        let (directory, file) = (client.find("d"), client.find("d/secret"))
        let other = client.find("e")
        rename(folder.host("d"), folder.host("old"))
        symlink(folder.outer + "/outside", folder.host("d"))
        // By a descriptor that is still open it is the old one, by its name nothing: never what the link leads to.
        for node in [directory, file] {
            let reply = client.attributes(node)
            #expect(reply.error == ESTALE || reply.error == 0)
        }
        let reply = client.open(file)
        if reply.error == 0 {
            #expect(client.read(file, reply.u64(0), at: 0, count: 100).bytes == Array("inside".utf8))
        } else {
            #expect(reply.error == ESTALE)
        }
        rename(folder.host("e"), folder.host("old2"))
        mkdir(folder.host("e"), 0o755)
        #expect([ESTALE, 0].contains(client.attributes(other).error))
        // Looked up again it is found again.
        #expect(client.find("old/secret") == file)
        #expect(client.attributes(file).error == 0)
        #expect(folder.isOutsideUntouched)
    }

    @Test("Only files and directories are opened, and nobody waits for the rest")
    func specialFiles() throws {
        let client = try client()
        mkfifo(folder.host("fifo"), 0o644)
        #expect(client.call(8, 1, Arguments().u32(0o140600, 0, 0, 0).name("socket")).error == 0)
        #expect(client.call(8, 1, Arguments().u32(0o010600, 0, 0, 0).name("pipe")).error == 0)
        for name in ["fifo", "socket", "pipe"] {
            let node = client.find(name)
            for flags in [O_RDONLY, O_WRONLY, O_RDWR] { #expect(client.open(node, flags).error == ENXIO) }
            #expect(client.create(name).error == ENXIO)
            #expect(client.setAttributes(node, valid: 8, size: 0).error == EINVAL)
            #expect(client.setAttributes(node, valid: 1, mode: 0o600).error == 0)
        }
        for type in [0o020000, 0o060000] as [UInt32] {
            #expect(client.call(8, 1, Arguments().u32(type | 0o600, 0x103, 0, 0).name("null")).error == EPERM)
        }
        if geteuid() == 0, mknod(folder.host("device"), 0o020666, 0x103) == 0 {
            #expect(client.open(client.find("device"), O_RDWR).error == ENXIO)
        }
        #expect(client.open(1).error == EISDIR)
        #expect(client.openDirectory(client.find("fifo")).error == ENOTDIR)
    }

    // MARK: What files are for

    @Test("Reading and writing are the host's")
    func contents() throws {
        let client = try client()
        let created = client.create("file", mode: 0o640)
        #expect(created.error == 0)
        let (node, handle) = (created.u64(0), created.u64(128))
        let data = (0..<5000).map { UInt8(truncatingIfNeeded: $0 &* 7 ^ $0 >> 5) }
        #expect(client.write(node, handle, data, at: 0).u32(0) == 5000)
        #expect(client.write(node, handle, Array("xyz".utf8), at: 10000).u32(0) == 3)
        let expected = data + [UInt8](repeating: 0, count: 5000) + Array("xyz".utf8)
        #expect(Folder.content(folder.host("file")) == expected)
        for (offset, count) in [(0, 5000), (0, 1), (4999, 10), (9000, 2000), (10003, 10), (20000, 5)] {
            let reply = client.read(node, handle, at: UInt64(offset), count: count)
            #expect(reply.error == 0 && reply.bytes == Array(expected.dropFirst(offset).prefix(count)))
        }
        #expect(ShareClient.Entry(client.lookUp("file")).size == 10003)
        #expect(client.setAttributes(node, valid: 8, size: 3).u64(16 + 8) == 3)
        #expect(client.setAttributes(node, valid: 8 | 64, handle: handle, size: 6).u64(16 + 8) == 6)
        #expect(Folder.content(folder.host("file")) == Array(data.prefix(3)) + [0, 0, 0])
        #expect(client.call(20, node, Arguments().u64(handle).u32(1, 0)).error == 0)
        #expect(client.call(50, 1, Arguments().u64(0)).error == 0)
        #expect(client.release(node, handle).error == 0)
        #expect(client.release(node, handle).error == EBADF)
        #expect(client.read(node, handle, at: 0, count: 1).error == EBADF)
        // Append goes to the end, wherever the guest thinks that is; what is only for reading is not written.
        let append = client.open(node, O_WRONLY | O_APPEND).u64(0)
        #expect(client.write(node, append, [1, 2], at: 0).u32(0) == 2)
        #expect(Folder.content(folder.host("file"))?.suffix(2) == [1, 2])
        #expect(client.read(node, append, at: 0, count: 1).error == EBADF)
        let reader = client.open(node, O_RDONLY).u64(0)
        #expect(client.write(node, reader, [1], at: 0).error == EBADF)
        #expect(client.write(node, reader &+ 1000, [1], at: 0).error == EBADF)
        #expect(client.write(1, append, [1], at: 0).error == EBADF)
        #expect(client.open(node, O_WRONLY | O_TRUNC).error == 0)
        #expect(Folder.content(folder.host("file")) == [])
        #expect(client.read(node, reader, at: UInt64(Int64.max), count: 10).error == EINVAL)
        #expect(client.write(node, append, [1], at: UInt64(Int64.max)).error == EFBIG)
    }

    @Test("Holes, allocation and copies")
    func ranges() throws {
        let client = try client()
        let file = client.create("file")
        let (node, handle) = (file.u64(0), file.u64(128))
        _ = client.write(node, handle, [UInt8](repeating: 7, count: 6000), at: 1 << 20)
        func seek(_ offset: UInt64, _ whence: UInt32) -> ShareClient.Reply {
            client.call(46, node, Arguments().u64(handle, offset).u32(whence, 0))
        }
        #expect(seek(0, 3).u64(0) == 1 << 20)
        #expect(seek(1 << 20, 4).u64(0) == 1 << 20 + 6000 || seek(1 << 20, 4).u64(0) == 1 << 20 | 8192)
        #expect(seek(2 << 20, 3).error == ENXIO)
        #expect(seek(0, 0).error == EINVAL)
        func allocate(_ mode: UInt32, _ offset: UInt64, _ count: UInt64) -> Int32 {
            client.call(43, node, Arguments().u64(handle, offset, count).u32(mode, 0)).error
        }
        #expect(allocate(0, 0, 3 << 20) == 0)
        #expect(stat(folder.host("file")).st_size == 3 << 20)
        #expect(allocate(3, 1 << 20, 4096) == 0)
        #expect(client.read(node, handle, at: 1 << 20, count: 4097).bytes == [UInt8](repeating: 0, count: 4096) + [7])
        #expect(allocate(8, 0, 4096) == EOPNOTSUPP)
        #expect(allocate(0, .max, 1) == EFBIG)
        let copy = client.create("copy")
        let copied = client.call(
            47, node, Arguments().u64(handle, 1 << 20, copy.u64(0), copy.u64(128), 10, 5000, 0))
        #expect(copied.u32(0) == 5000)
        #expect(
            Folder.content(folder.host("copy"))
                == [UInt8](repeating: 0, count: 10 + 4096) + [UInt8](repeating: 7, count: 904))
    }

    @Test("Names change as on the host, and open files live on")
    func names() throws {
        let client = try client()
        let file = client.create("a")
        let (node, handle) = (file.u64(0), file.u64(128))
        _ = client.write(node, handle, [1, 2, 3], at: 0)
        #expect(client.call(9, 1, Arguments().u32(0o750, 0).name("dir")).error == 0)
        let directory = client.find("dir")
        #expect(stat(folder.host("dir")).st_mode & 0o7777 == 0o750)
        #expect(client.call(13, directory, Arguments().u64(node).name("b")).error == 0)
        #expect(ShareClient.Entry(client.lookUp("a")).links == 2)
        #expect(client.find("dir/b") == node)
        func rename(_ from: (UInt64, String), _ to: (UInt64, String), flags: UInt32 = 0) -> Int32 {
            client.call(45, from.0, Arguments().u64(to.0).u32(flags, 0).name(from.1).name(to.1)).error
        }
        #expect(rename((1, "a"), (directory, "b"), flags: 1) == EEXIST)
        #expect(rename((1, "a"), (directory, "c")) == 0)
        #expect(client.attributes(node).error == 0)
        folder.make("x", "exchanged")
        let other = client.find("x")
        #expect(rename((1, "x"), (directory, "c"), flags: 2) == 0)
        #expect(client.find("x") == node && client.find("dir/c") == other)
        #expect(rename((1, "x"), (1, "y"), flags: 4) == EINVAL)
        #expect(client.call(12, 1, Arguments().u64(directory).name("x").name("c")).error == 0)
        // What was replaced is gone by name, and still there for who has it.
        #expect(client.attributes(other).error == 0)
        #expect(rename((1, "dir"), (directory, "dir")) == EINVAL)
        for name in ["b", "c"] { #expect(client.call(10, directory, Arguments().name(name)).error == 0) }
        #expect(client.lookUp("b", in: directory).error == ENOENT)
        #expect(client.attributes(node).u32(16 + 64) == 0)
        #expect(client.read(node, handle, at: 0, count: 10).bytes == [1, 2, 3])
        #expect(client.call(10, 1, Arguments().name("dir")).error == EISDIR)
        #expect(client.call(11, 1, Arguments().name("dir")).error == 0)
        #expect(client.attributes(directory).error == 0)
        #expect(client.create("new", in: directory).error == ENOENT)
        #expect(Folder.names(folder.path) == [])
    }

    @Test("Listings are complete, whatever the guest's buffer", arguments: [160, 400, 4096, 1 << 17])
    func listings(room: Int) throws {
        let client = try client()
        let names = (0..<300).map { "file-\($0)" + String(repeating: "x", count: $0 % 50) }
        for name in names { folder.make(name) }
        mkdir(folder.host("sub"), 0o755)
        let expected = (names + ["sub", ".", ".."]).sorted()
        for plus in [false, true] {
            guard room > 400 || !plus else { continue }
            let list = try #require(client.list(1, plus: plus, room: room))
            #expect(list.map(\.name).sorted() == expected)
            guard plus else { continue }
            for (name, node) in list where name != "." && name != ".." {
                #expect(client.find(name) == node)
                client.forget(node, 2)
            }
        }
        // Every lookup has been counted: nothing is left of them but the root.
        #expect(client.share.nodes.counts.nodes == 1)
        let handle = client.openDirectory(1).u64(0)
        #expect(client.call(28, 1, Arguments().u64(handle, 0).u32(24, 0).u64(0).u32(0, 0)).error == EINVAL)
    }

    @Test("A share that may only be read")
    func readOnly() throws {
        folder.make("file", "text")
        mkdir(folder.host("dir"), 0o755)
        let client = try client(isReadOnly: true)
        let node = client.find("file")
        let handle = client.open(node).u64(0)
        #expect(client.read(node, handle, at: 0, count: 10).bytes == Array("text".utf8))
        let name = Arguments().name("n")
        let results: [(String, Int32)] = [
            ("write", client.write(node, handle, [1], at: 0).error), ("create", client.create("n").error),
            ("open", client.open(node, O_WRONLY).error), ("open", client.open(node, O_RDWR).error),
            ("truncate", client.open(node, O_RDONLY | O_TRUNC).error),
            ("setattr", client.setAttributes(node, valid: 1, mode: 0o777).error),
            ("symlink", client.call(6, 1, name.name("t")).error),
            ("mknod", client.call(8, 1, Arguments().u32(0o100644, 0, 0, 0).name("n")).error),
            ("mkdir", client.call(9, 1, Arguments().u32(0o755, 0).name("n")).error),
            ("unlink", client.call(10, 1, Arguments().name("file")).error),
            ("rmdir", client.call(11, 1, Arguments().name("dir")).error),
            ("rename", client.call(12, 1, Arguments().u64(1).name("file").name("n")).error),
            ("rename2", client.call(45, 1, Arguments().u64(1).u32(0, 0).name("file").name("n")).error),
            ("link", client.call(13, 1, Arguments().u64(node).name("n")).error),
            ("setxattr", client.call(21, node, Arguments().u32(1, 0).name("user.a").data([1])).error),
            ("removexattr", client.call(24, node, Arguments().name("user.a")).error),
            ("fallocate", client.call(43, node, Arguments().u64(handle, 0, 10).u32(0, 0)).error),
            ("copy", client.call(47, node, Arguments().u64(handle, 0, node, handle, 0, 1, 0)).error),
            ("access", client.call(34, node, Arguments().u32(2, 0)).error),
        ]
        for (what, error) in results { #expect(error == EROFS, "\(what)") }
        #expect(Folder.content(folder.host("file")) == Array("text".utf8))
        #expect(Folder.names(folder.path) == ["dir", "file"])
    }

    // MARK: Attributes

    @Test("Modes, times and the space of the file system")
    func attributes() throws {
        let client = try client()
        folder.make("file")
        let node = client.find("file")
        #expect(client.setAttributes(node, valid: 1, mode: 0o4711).u32(16 + 60) & 0o7777 == 0o4711)
        #expect(stat(folder.host("file")).st_mode & 0o7777 == 0o4711)
        let changed = client.setAttributes(
            node, valid: 16 | 32, times: [1_000_000_000, UInt64(bitPattern: -5)], nanoseconds: [123, 999_999_999])
        #expect(changed.error == 0)
        let status = stat(folder.host("file"))
        #expect(status.st_atim.tv_sec == 1_000_000_000 && status.st_atim.tv_nsec == 123)
        #expect(status.st_mtim.tv_sec == -5 && status.st_mtim.tv_nsec == 999_999_999)
        #expect(client.setAttributes(node, valid: 16, nanoseconds: [1_000_000_000, 0]).error == EINVAL)
        // time(2) and files have the time of the last tick.
        let before = time(nil)
        #expect(client.setAttributes(node, valid: 32 | 256).error == 0)
        let after = Int(HostClock.realtimeNanoseconds / 1_000_000_000)
        let now = stat(folder.host("file")).st_mtim.tv_sec
        #expect(before <= now && now <= after)
        let entry = ShareClient.Entry(client.lookUp("file"))
        #expect(entry.inode == status.st_ino && entry.links == 1)
        // A write by somebody without privileges takes set-user-ID away.
        let handle = client.open(node, O_RDWR).u64(0)
        _ = client.write(node, handle, [1], at: 0, flags: 4)
        #expect(stat(folder.host("file")).st_mode & 0o7777 == 0o711)
        var space = statvfs()
        statvfs(folder.path, &space)
        let reply = client.call(17, 1)
        #expect(reply.u64(0) == space.f_blocks && reply.u32(44) == 255 && reply.u32(40) == UInt32(space.f_bsize))
    }

    @Test("What is made has the mode that was asked for, whatever our umask")
    func umasks() throws {
        let client = try client()
        #expect(client.create("file", mode: 0o666).error == 0)
        #expect(client.call(9, 1, Arguments().u32(0o777, 0).name("dir")).error == 0)
        #expect(client.call(8, 1, Arguments().u32(0o100777, 0, 0, 0).name("node")).error == 0)
        #expect(stat(folder.host("file")).st_mode & 0o7777 == 0o666)
        #expect(stat(folder.host("dir")).st_mode & 0o7777 == 0o777)
        #expect(stat(folder.host("node")).st_mode & 0o7777 == 0o777)
    }

    @Test("As root of the host, owners are the same on both sides", .enabled(if: geteuid() == 0, "not root"))
    func rootOwners() throws {
        let client = try client()
        client.user = 1234
        client.group = 567
        #expect(client.create("file", mode: 0o6755).error == 0)
        #expect(client.call(9, 1, Arguments().u32(0o2775, 0).name("dir")).error == 0)
        #expect(client.call(6, 1, Arguments().name("link").name("t")).error == 0)
        for name in ["file", "dir", "link"] {
            let status = stat(folder.host(name))
            #expect(status.st_uid == 1234 && status.st_gid == 567, "\(name)")
            let entry = ShareClient.Entry(client.lookUp(name))
            #expect(entry.user == 1234 && entry.group == 567)
        }
        #expect(stat(folder.host("file")).st_mode & 0o7777 == 0o6755)
        chmod(folder.host("dir"), 0o2775)
        // In a set-group-ID directory the group is the directory's.
        client.group = 99
        #expect(client.create("inside", in: client.find("dir")).error == 0)
        #expect(stat(folder.host("dir/inside")).st_gid == 567 && stat(folder.host("dir/inside")).st_uid == 1234)
        let node = client.find("file")
        #expect(client.setAttributes(node, valid: 2 | 4, user: 42, group: 43).error == 0)
        #expect(stat(folder.host("file")).st_uid == 42 && stat(folder.host("file")).st_gid == 43)
    }

    @Test("As another user, what is ours is root's in the guest")
    func mappedOwners() throws {
        let mapping = OwnerMapping(user: 1000, group: 100)
        #expect(mapping.shown(user: 1000) == 0 && mapping.shown(group: 100) == 0)
        #expect(mapping.shown(user: 0) == 65534 && mapping.shown(group: 0) == 65534)
        #expect(mapping.shown(user: 1001) == 65534)
        #expect(try mapping.requested(user: 0) == nil && mapping.requested(group: 0) == nil)
        #expect(throws: ShareFault(EPERM)) { try mapping.requested(user: 1000) }
        #expect(throws: ShareFault(EPERM)) { try mapping.requested(group: 5) }
        let identity = OwnerMapping(user: nil, group: nil)
        #expect(identity.shown(user: 7) == 7)
        #expect(try identity.requested(user: 7) == 7)
    }

    @Test("Only user attributes")
    func extendedAttributes() throws {
        folder.make("file")
        let client = try client()
        let node = client.find("file")
        let host = try PathDescriptor(owning: host_share_open_root(folder.path)).find(FileName(Array("file".utf8)))
        func key(_ name: String) -> [CChar] { Array(name.utf8CString) }
        try host.setAttribute(key("user.host"), [1], flags: 0)
        func get(_ name: String, _ size: UInt32) -> ShareClient.Reply {
            client.call(22, node, Arguments().u32(size, 0).name(name))
        }
        func set(_ name: String, _ value: [UInt8], flags: UInt32 = 0) -> Int32 {
            client.call(21, node, Arguments().u32(UInt32(value.count), flags).name(name).data(value)).error
        }
        #expect(set("user.guest", [1, 2, 3]) == 0)
        #expect(try host.attribute(key("user.guest"), limit: 10) == [1, 2, 3])
        #expect(get("user.guest", 0).u32(0) == 3)
        #expect(get("user.guest", 100).bytes == [1, 2, 3])
        #expect(get("user.guest", 2).error == ERANGE)
        #expect(get("user.none", 100).error == ENODATA)
        #expect(set("user.guest", [1], flags: 1) == EEXIST)
        #expect(set("user.none", [1], flags: 2) == ENODATA)
        let list = client.call(23, node, Arguments().u32(1000, 0)).bytes
        #expect(Set(String(decoding: list, as: UTF8.self).split(separator: "\0")) == ["user.host", "user.guest"])
        #expect(client.call(23, node, Arguments().u32(0, 0)).u32(0) == UInt32(list.count))
        #expect(client.call(23, node, Arguments().u32(3, 0)).error == ERANGE)
        #expect(client.call(24, node, Arguments().name("user.guest")).error == 0)
        #expect(throws: ShareFault(ENODATA)) { try host.attribute(key("user.guest"), limit: 10) }
        for name in ["security.capability", "trusted.x", "system.posix_acl_access", "user.", "user", ""] {
            #expect(set(name, [0]) == EOPNOTSUPP, "\(name)")
            #expect(get(name, 0).error == EOPNOTSUPP, "\(name)")
            #expect(client.call(24, node, Arguments().name(name)).error == EOPNOTSUPP, "\(name)")
        }
        #expect(client.call(21, node, Arguments().u32(100, 0).name("user.x").data([1])).error == EINVAL)
    }
}
