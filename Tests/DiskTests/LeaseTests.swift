import Disk
import Foundation
import Host
import Synchronization
import Testing

extension BlockDevice {
    /// Writes by a lease, part by part, where there is one; else as ever. True: by a lease.
    @discardableResult
    func writeLeased(_ bytes: [UInt8], at offset: UInt64) throws -> Bool {
        let buffer = PageBuffer(bytes)
        guard let lease = lease(buffer.memory, at: offset, forWriting: true) else {
            try write(bytes, at: offset)
            return false
        }
        defer { lease.release() }
        for part in lease.parts.reversed() { try part.storage.write(part.memory, at: part.offset) }
        return true
    }

    /// Reads in the same way.
    func readLeased(count: Int, at offset: UInt64) throws -> [UInt8] {
        let buffer = PageBuffer([UInt8](repeating: 0xEE, count: count))
        guard let lease = lease(buffer.memory, at: offset, forWriting: false) else {
            return try read(count: count, at: offset)
        }
        defer { lease.release() }
        for part in lease.parts.reversed() { try part.storage.read(into: part.memory, at: part.offset) }
        return buffer.bytes
    }
}

@Suite("Leases of a disk's ranges")
struct LeaseTests {
    private static let clusterSize: UInt64 = 4096

    private func image(_ scratch: Scratch, _ name: String = "image") throws -> QCOW2Disk {
        var options = QCOW2Options()
        options.clusterSize = Self.clusterSize
        try DiskImage.createQCOW2(scratch.path(name), size: 1 << 20, options)
        return try DiskImage.openQCOW2(scratch.path(name), DiskImage.Options(isWritable: true))
    }

    private func memory(_ count: Int) -> TransferMemory { PageBuffer(count: count).memory }

    @Test("Only what is a matter of moving bytes is leased")
    func kinds() throws {
        let disk = try image(Scratch())
        // Nothing is there: a read is zeros already, a write has to allocate.
        let empty = try #require(disk.lease(memory(8192), at: 0, forWriting: false))
        #expect(empty.parts.isEmpty)
        empty.release()
        #expect(disk.lease(memory(512), at: 0, forWriting: true) == nil)
        try disk.write([UInt8](repeating: 1, count: 4096), at: 0)
        try disk.write([UInt8](repeating: 2, count: 4096), at: 16384)
        try disk.write([UInt8](repeating: 3, count: 4096), at: 4096)
        // Two clusters in two places, and two that are not there.
        let read = try #require(disk.lease(memory(5 * 4096 - 512), at: 512, forWriting: false))
        #expect(read.parts.map(\.memory.count) == [3584, 4096, 4096])
        read.release()
        #expect(disk.lease(memory(8192), at: 4096, forWriting: true) == nil)
        let write = try #require(disk.lease(memory(8192), at: 0, forWriting: true))
        #expect(write.parts.map(\.memory.count) == [4096, 4096])
        write.release()
        // A snapshot has the clusters too.
        try disk.createSnapshot("s", time: 0)
        #expect(disk.lease(memory(512), at: 0, forWriting: true) == nil)
        #expect(disk.lease(memory(512), at: UInt64.max, forWriting: false) == nil)
        #expect(disk.lease(memory(8192), at: (1 << 20) - 4096, forWriting: false) == nil)
    }

    @Test("Reads go through backing files, and past their end")
    func backing() throws {
        let scratch = try Scratch()
        try Data([UInt8](repeating: 7, count: 6144)).write(to: scratch.file("base"))
        var options = QCOW2Options()
        options.clusterSize = Self.clusterSize
        options.backingFile = scratch.path("base")
        options.backingFormat = .raw
        try DiskImage.createQCOW2(scratch.path("image"), size: 1 << 20, options)
        let disk = try DiskImage.openQCOW2(scratch.path("image"), DiskImage.Options(isWritable: true))
        try disk.write([UInt8](repeating: 9, count: 512), at: 4096)
        #expect(disk.lease(memory(4096), at: 0, forWriting: true) == nil)
        let lease = try #require(disk.lease(memory(4 * 4096), at: 0, forWriting: false))
        #expect(lease.parts.count == 2)
        lease.release()
        #expect(try disk.readLeased(count: 16384, at: 0) == disk.read(count: 16384, at: 0))
    }

    enum Change: CaseIterable, Sendable { case discard, zero, snapshot, allocate }

    @Test("Nobody changes where leased bytes are", arguments: Change.allCases, [false, true])
    func excludes(change: Change, forWriting: Bool) throws {
        let disk = try image(Scratch())
        try disk.write([UInt8](repeating: 1, count: 8192), at: 0)
        if change == .allocate { try disk.createSnapshot("first", time: 0) }
        _ = try disk.read(count: 512, at: 0)
        guard let lease = disk.lease(memory(512), at: 1024, forWriting: forWriting && change != .allocate) else {
            Issue.record("no lease")
            return
        }
        let isOver = Atomic<Bool>(false)
        try withThread {
            do {
                switch change {
                case .discard: try disk.discard(0..<4096)
                case .zero: try disk.writeZeroes(0..<4096, mayUnmap: true)
                case .snapshot: try disk.createSnapshot("s", time: 0)
                case .allocate: try disk.write([2], at: 0)
                }
            } catch {
                Issue.record("\(error)")
            }
            isOver.store(true, ordering: .releasing)
        } meanwhile: {
            // Nobody overtakes the one that waits, once it does. A single refusal may be for the lock of the tables.
            let end = HostClock.monotonicNanoseconds + 60_000_000_000
            var refusals = 0
            while refusals < 30, HostClock.monotonicNanoseconds < end {
                if let other = disk.lease(memory(512), at: 0, forWriting: false) {
                    other.release()
                    refusals = 0
                } else {
                    refusals += 1
                }
                HostClock.sleep(nanoseconds: 1_000_000)
            }
            #expect(refusals == 30)
            let isEarly = isOver.load(ordering: .acquiring)
            #expect(!isEarly)
            // Others are not held up, unless it waits for all.
            if change != .snapshot {
                let other = try disk.read(count: 512, at: 4096)
                #expect(other == [UInt8](repeating: 1, count: 512))
            }
            lease.release()
        }
        let hasEnded = isOver.load(ordering: .acquiring)
        #expect(hasEnded)
        #expect(try disk.check().corruptions == 0)
    }

    private func withThread(_ body: @escaping @Sendable () -> Void, meanwhile: () throws -> Void) throws {
        let thread = try HostThread(name: "changes the disk", body)
        try meanwhile()
        thread.join()
    }

    @Test("What is only read is not leased for writing")
    func readOnly() throws {
        let scratch = try Scratch()
        let disk = try image(scratch)
        try disk.write([UInt8](repeating: 1, count: 4096), at: 0)
        try disk.close()
        #expect(disk.lease(memory(512), at: 0, forWriting: false) == nil)
        let again = try DiskImage.openQCOW2(scratch.path("image"), DiskImage.Options())
        #expect(again.lease(memory(512), at: 0, forWriting: true) == nil)
        // The table is not in memory yet: reading it would be waiting.
        #expect(again.lease(memory(512), at: 0, forWriting: false) == nil)
        _ = try again.read(count: 512, at: 0)
        let lease = again.lease(memory(512), at: 0, forWriting: false)
        #expect(lease?.parts.count == 1)
        lease?.release()
        let raw = try DiskImage.open(scratch.path("image"), .raw, DiskImage.Options())
        #expect(raw.lease(memory(512), at: 0, forWriting: true) == nil)
        #expect(raw.lease(memory(512), at: raw.size, forWriting: false) == nil)
    }
}
