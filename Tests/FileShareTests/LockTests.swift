import CHost
import Host
import Synchronization
import Testing

@testable import FileShare

#if canImport(Glibc)
    import Glibc
#endif

@Suite("Locks of a share")
struct LockTests {
    private let folder = Folder()
    private let client: ShareClient
    private let node: UInt64
    private let handle: UInt64

    init() throws {
        folder.make("file", "content")
        client = ShareClient(try FileShare(path: folder.path))
        _ = client.initialize()
        node = client.find("file")
        handle = client.open(node, O_RDWR).u64(0)
    }

    /// What a process of the host finds at a byte, by a lock of its own.
    private func hostFinds(_ byte: Int, _ type: Int32 = F_WRLCK) -> Int32 {
        let file = open(folder.host("file"), O_RDWR | O_CLOEXEC)
        defer { close(file) }
        var lock = flock(l_type: Int16(type), l_whence: 0, l_start: byte, l_len: 1, l_pid: 0)
        #expect(fcntl(file, HostLock.get, &lock) == 0)
        return Int32(lock.l_type)
    }

    private func set(
        _ owner: UInt64, _ type: Int32, _ range: ClosedRange<UInt64>
    ) -> Int32 { client.lock(32, node, handle, owner: owner, type, range).error }

    @Test("Locks conflict with the guest's others and with the host's")
    func conflicts() {
        #expect(set(1, F_WRLCK, 10...19) == 0)
        #expect(set(1, F_RDLCK, 30...39) == 0)
        #expect(set(2, F_WRLCK, 15...15) == EAGAIN)
        #expect(set(2, F_RDLCK, 35...36) == 0)
        #expect(set(2, F_WRLCK, 35...36) == EAGAIN)
        let found = client.lock(31, node, handle, owner: 2, F_WRLCK, 0...100)
        #expect(found.u64(0) == 10 && found.u64(8) == 19 && found.u32(16) == UInt32(F_WRLCK) && found.u32(20) == 42)
        #expect(client.lock(31, node, handle, owner: 1, F_WRLCK, 10...19).u32(16) == UInt32(F_UNLCK))
        #expect(hostFinds(9) == F_UNLCK && hostFinds(10) == F_WRLCK && hostFinds(35) == F_RDLCK)
        // Unlocking the middle leaves both ends.
        #expect(set(1, F_UNLCK, 12...13) == 0)
        #expect(hostFinds(12) == F_UNLCK && hostFinds(11) == F_WRLCK && hostFinds(14) == F_WRLCK)
        #expect(client.share.save().locks.filter { $0.isWrite }.map { [$0.start, $0.end] } == [[10, 11], [14, 19]])
        // Closing a descriptor ends all of its process's locks on the file.
        #expect(client.call(25, node, Arguments().u64(handle).u32(0, 0).u64(1)).error == 0)
        #expect(hostFinds(10) == F_UNLCK && hostFinds(35) == F_RDLCK)
        #expect(set(2, F_WRLCK, 15...UInt64(Int64.max)) == 0)
        #expect(hostFinds(1 << 40) == F_WRLCK)
    }

    @Test("Requests that make no sense")
    func nonsense() {
        #expect(set(1, 77, 0...1) == EINVAL)
        #expect(
            client.call(32, node, client.lockArguments(handle, 1, F_WRLCK, 0...1).bytes.reversed().asArguments).error
                != 0)
        #expect(client.lock(32, node, handle + 9, owner: 1, F_WRLCK, 0...1).error == EBADF)
        #expect(client.call(32, node, Arguments().u64(handle, 1, 5, 4).u32(UInt32(F_WRLCK), 0, 0, 0)).error == EINVAL)
        #expect(
            client.call(32, node, Arguments().u64(handle, 1, .max, .max).u32(UInt32(F_WRLCK), 0, 0, 0)).error == EINVAL)
        #expect(
            client.call(32, node, Arguments().u64(handle, 1, 0, 4).u32(UInt32(F_WRLCK), 0, 1, 0)).error == EOPNOTSUPP)
    }

    /// A request that waits, and what it has ended with.
    private func wait(_ owner: UInt64, _ type: Int32, _ range: ClosedRange<UInt64>) -> (LockWait?, Atomic<Int32>.Box) {
        let box = Atomic<Int32>.Box()
        let (outcome, _) = client.serve(33, node, client.lockArguments(handle, owner, type, range))
        guard case .waits(let wait) = outcome else { return (nil, box) }
        wait.whenDone { box.value.store($0, ordering: .sequentiallyConsistent) }
        return (wait, box)
    }

    @Test("A lock is waited for until the guest or the host gives it up, or an interrupt comes")
    func waiting() throws {
        #expect(set(1, F_WRLCK, 0...9) == 0)
        let (first, result) = wait(2, F_WRLCK, 5...5)
        try #require(first != nil)
        #expect(client.share.hasLockWaits && result.now == -1)
        client.share.retryLocks()
        #expect(result.now == -1)
        #expect(set(1, F_UNLCK, 5...5) == 0)
        #expect(result.now == 0 && hostFinds(5) == F_WRLCK && !client.share.hasLockWaits)

        let host = open(folder.host("file"), O_RDWR | O_CLOEXEC)
        var lock = flock(l_type: Int16(F_WRLCK), l_whence: 0, l_start: 50, l_len: 1, l_pid: 0)
        #expect(fcntl(host, HostLock.set, &lock) == 0)
        #expect(set(3, F_RDLCK, 50...50) == EAGAIN)
        let (_, byHost) = wait(3, F_RDLCK, 50...50)
        // Not by closing it: a program that another test is just starting may have it too.
        lock.l_type = Int16(F_UNLCK)
        #expect(fcntl(host, HostLock.set, &lock) == 0)
        close(host)
        #expect(byHost.now == -1)
        client.share.retryLocks()
        #expect(byHost.now == 0)

        let (interrupted, byInterrupt) = wait(4, F_WRLCK, 0...4)
        try #require(interrupted != nil)
        _ = client.serve(36, 0, Arguments().u64(1), room: 0)
        #expect(byInterrupt.now == -1)
        _ = client.serve(36, 0, Arguments().u64(interrupted?.unique ?? 0), room: 0)
        #expect(byInterrupt.now == EINTR)
        #expect(set(1, F_UNLCK, 0...9) == 0 && hostFinds(0) == F_UNLCK)
    }

    @Test("Waiting requests are bounded, and end with the share")
    func bounds() {
        #expect(set(1, F_WRLCK, 0...9) == 0)
        let waits = (0..<256).map { wait(UInt64(10 + $0), F_WRLCK, 0...0) }
        #expect(waits.allSatisfy { $0.0 != nil })
        #expect(client.lock(33, node, handle, owner: 999, F_WRLCK, 0...0).error == ENOLCK)
        client.share.reset()
        #expect(waits.allSatisfy { $0.1.now == EINTR })
        #expect(hostFinds(0) == F_UNLCK)
    }
}

extension Atomic<Int32> {
    /// -1 until something is stored.
    final class Box: Sendable {
        let value = Atomic<Int32>(-1)
        var now: Int32 { value.load(ordering: .sequentiallyConsistent) }
    }
}

extension Collection<UInt8> {
    var asArguments: Arguments { Arguments(bytes: Array(self)) }
}
