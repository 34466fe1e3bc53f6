import CHost
import Host
import Testing

@testable import FileShare

#if canImport(Glibc)
    import Glibc
#endif

@Suite("What a share remembers, and how much")
struct SnapshotTests {
    private let folder = Folder()

    @Test("Descriptors are bounded, nodes are not lost by that")
    func eviction() throws {
        let share = try FileShare(path: folder.path, nodeLimit: 5000, descriptorLimit: 40, handleLimit: 20)
        let client = ShareClient(share)
        _ = client.initialize()
        for directory in 0..<20 {
            mkdir(folder.host("d\(directory)"), 0o755)
            for file in 0..<20 { folder.make("d\(directory)/f\(file)", "\(directory)-\(file)") }
        }
        var nodes: [(UInt64, String)] = []
        for directory in 0..<20 {
            for file in 0..<20 { nodes.append((client.find("d\(directory)/f\(file)"), "\(directory)-\(file)")) }
        }
        for (node, text) in nodes + nodes.reversed() {
            let handle = client.open(node).u64(0)
            #expect(client.read(node, handle, at: 0, count: 20).bytes == Array(text.utf8))
            #expect(client.release(node, handle).error == 0)
            #expect(share.nodes.counts.descriptors <= 50)
        }
        // What is open keeps its descriptor; beyond the limit there is an error, not a leak.
        let handles = nodes.prefix(30).map { client.open($0.0) }
        #expect(handles.prefix(20).allSatisfy { $0.error == 0 } && handles[20].error == ENFILE)
        #expect(client.create("more").error == ENFILE && client.openDirectory(1).error == ENFILE)
    }

    @Test("Files that the guest knows are bounded")
    func nodeLimit() throws {
        let share = try FileShare(path: folder.path, nodeLimit: 50, descriptorLimit: 40, handleLimit: 20)
        let client = ShareClient(share)
        _ = client.initialize()
        for file in 0..<60 { folder.make("f\(file)") }
        let replies = (0..<60).map { client.lookUp("f\($0)") }
        #expect(replies.count { $0.error == 0 } == 49 && replies[50].error == ENFILE)
        // A listing goes on without them.
        #expect(client.list(1, plus: true)?.count == 62)
        client.forget(replies[0].u64(0), 2)
        #expect(client.lookUp("f55").error == 0)
    }

    @Test("A state whose numbers are used up is refused: the next file would have none")
    func numbersUsedUp() throws {
        let first = ShareClient(try FileShare(path: folder.path))
        _ = first.initialize()
        folder.make("file")
        let saved = first.share.save()
        for change in [{ $0.nextNode = .max }, { $0.nextHandle = .max }] as [(inout ShareSnapshot) -> Void] {
            var changed = saved
            change(&changed)
            let share = try FileShare(path: folder.path)
            #expect(share.restore(changed) == nil)
            let client = ShareClient(share)
            _ = client.initialize()
            #expect(
                client.read(client.find("file"), client.open(client.find("file")).u64(0), at: 0, count: 9).error == 0)
        }
    }

    @Test("A share goes on where it was saved, and what is gone is stale")
    func roundTrip() throws {
        let first = ShareClient(try FileShare(path: folder.path))
        _ = first.initialize()
        mkdir(folder.host("dir"), 0o755)
        for index in 0..<500 { folder.make("dir/file-\(index)", "text \(index)") }
        for name in ["kept", "gone", "replaced", "deleted-open"] { folder.make(name, name) }
        let created = first.create("dir/../x").error
        #expect(created == EINVAL)
        let nodes = ["dir", "kept", "gone", "replaced", "deleted-open", "dir/file-7"].map(first.find)
        let kept = first.open(nodes[1], O_RDWR).u64(0)
        let gone = first.open(nodes[2]).u64(0)
        let deleted = first.open(nodes[4]).u64(0)
        #expect(first.call(10, 1, Arguments().name("deleted-open")).error == 0)
        #expect(first.lock(32, nodes[1], kept, owner: 5, F_WRLCK, 3...8).error == 0)
        // In the middle of a listing.
        let directory = first.openDirectory(nodes[0]).u64(0)
        func part(_ client: ShareClient, _ offset: UInt64) -> (names: [String], next: UInt64) {
            let reply = client.call(
                28, nodes[0], Arguments().u64(directory, offset).u32(2000, 0).u64(0).u32(0, 0))
            var (names, next, position): ([String], UInt64, Int) = ([], offset, 0)
            while position < reply.bytes.count {
                next = reply.u64(position + 8)
                let length = Int(reply.u32(position + 16))
                names.append(String(decoding: reply.bytes[position + 24..<position + 24 + length], as: UTF8.self))
                position += (24 + length + 7) & ~7
            }
            return (names, next)
        }
        var (names, offset) = part(first, 0)
        let snapshot = first.share.save()
        first.share.reset()

        unlink(folder.host("gone"))
        rename(folder.host("kept"), folder.host("aside"))
        rename(folder.host("aside"), folder.host("kept"))
        unlink(folder.host("replaced"))
        folder.make("replaced", "another")
        let second = ShareClient(try FileShare(path: folder.path))
        #expect(second.share.restore(snapshot) == 0)
        #expect(second.share.save() == snapshot)
        #expect(second.read(nodes[1], kept, at: 0, count: 10).bytes == Array("kept".utf8))
        #expect(second.write(nodes[1], kept, [0x4B], at: 0).error == 0)
        #expect(second.attributes(nodes[5]).error == 0 && second.find("dir/file-7") == nodes[5])
        #expect(second.attributes(nodes[2]).error == ESTALE && second.attributes(nodes[4]).error == ESTALE)
        #expect(second.read(nodes[2], gone, at: 0, count: 1).error == ESTALE)
        #expect(second.read(nodes[4], deleted, at: 0, count: 1).error == ESTALE)
        #expect(second.open(nodes[3]).error == ESTALE)
        #expect(second.find("replaced") != nodes[3])
        let file = open(folder.host("kept"), O_RDWR | O_CLOEXEC)
        var lock = flock(l_type: Int16(F_WRLCK), l_whence: 0, l_start: 3, l_len: 1, l_pid: 0)
        #expect(fcntl(file, HostLock.get, &lock) == 0 && lock.l_type == Int16(F_WRLCK))
        close(file)
        while true {
            let (more, next) = part(second, offset)
            if more.isEmpty { break }
            names += more
            offset = next
        }
        #expect(Set(names) == Set((0..<500).map { "file-\($0)" } + [".", ".."]) && names.count == 502)
    }

    @Test("A lock that somebody has taken meanwhile is told as lost")
    func lostLock() throws {
        folder.make("file")
        let client = ShareClient(try FileShare(path: folder.path))
        _ = client.initialize()
        let node = client.find("file")
        #expect(client.lock(32, node, client.open(node, O_RDWR).u64(0), owner: 5, F_WRLCK, 3...8).error == 0)
        let snapshot = client.share.save()
        client.share.reset()
        let file = open(folder.host("file"), O_RDWR | O_CLOEXEC)
        defer { close(file) }
        var lock = flock(l_type: Int16(F_WRLCK), l_whence: 0, l_start: 0, l_len: 0, l_pid: 0)
        #expect(fcntl(file, HostLock.set, &lock) == 0)
        #expect(try FileShare(path: folder.path).restore(snapshot) == 1)
    }

    @Test("Snapshots that no share has made")
    func badSnapshots() throws {
        let share = try FileShare(path: folder.path)
        let good = ShareSnapshot.SavedNode(
            identifier: 2, parent: 1, name: [0x61], device: 1, inode: 2, birth: 3, type: 0o100000, lookups: 1)
        func snapshot(_ nodes: [ShareSnapshot.SavedNode], _ handles: [ShareSnapshot.SavedHandle] = []) -> ShareSnapshot
        {
            ShareSnapshot(
                isInitialized: true, rootDevice: 1, nextNode: 10, nextHandle: 5, nodes: nodes, handles: handles,
                locks: [])
        }
        #expect(share.restore(snapshot([good])) == 0)
        var changes: [(inout ShareSnapshot.SavedNode) -> Void] = []
        changes.append { $0.identifier = 0 }
        changes.append { $0.identifier = 1 }
        changes.append { $0.identifier = 10 }
        changes.append { $0.parent = 7 }
        changes.append { $0.name = Array("..".utf8) }
        changes.append { $0.name = Array("a/b".utf8) }
        changes.append { $0.name = [] }
        for change in changes {
            var node = good
            change(&node)
            #expect(share.restore(snapshot([node])) == nil)
        }
        #expect(share.restore(snapshot([good, good])) == nil)
        let handle = ShareSnapshot.SavedHandle(number: 5, node: 2, flags: 0, isDirectory: false)
        #expect(share.restore(snapshot([good], [handle])) == nil)
        // One inside the other: nobody can be reached by that, and nothing hangs.
        var (a, b) = (good, good)
        a.parent = 3
        b.identifier = 3
        b.parent = 2
        b.inode = 9
        #expect(share.restore(snapshot([a, b])) == 0)
        #expect(ShareClient(share).attributes(2).error == ESTALE)
    }
}
