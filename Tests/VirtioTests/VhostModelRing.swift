import Glibc
import Host
import Synchronization

@testable import Net

/// One turn of a `VhostModel` on one of its rings (Virtio 1.2 §2.7, §5.1.6).
struct VhostModelRing {
    var ring: VhostModel.Ring
    let features: UInt64
    let regions: [VhostMemoryRegion]

    private typealias Piece = (address: UnsafeMutableRawPointer, count: Int, isWritable: Bool)
    private struct Trouble: Error {}

    private var hasEventIndex: Bool { features & 1 << 29 != 0 }
    private var merges: Bool { features & 1 << 15 != 0 }
    private static let headerSize = 12

    // MARK: Memory

    private func pointer(_ address: UInt64) -> UnsafeMutableRawPointer {
        UnsafeMutableRawPointer(bitPattern: UInt(address))!
    }

    private var available: UnsafeMutableRawPointer { pointer(ring.addresses!.available) }
    private var used: UnsafeMutableRawPointer { pointer(ring.addresses!.used) }
    private var entries: Int { Int(ring.size) }

    private func load(_ place: UnsafeMutableRawPointer) -> UInt16 {
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        return place.load(as: UInt16.self)
    }

    private func store(_ value: UInt16, _ place: UnsafeMutableRawPointer) {
        place.storeBytes(of: value, as: UInt16.self)
        atomicMemoryFence(ordering: .sequentiallyConsistent)
    }

    private func translate(_ address: UInt64, _ count: Int) throws -> UnsafeMutableRawPointer {
        for region in regions where address >= region.guestAddress {
            let offset = address - region.guestAddress
            if offset < region.size, UInt64(count) <= region.size - offset {
                return pointer(region.hostAddress + offset)
            }
        }
        throw Trouble()
    }

    // MARK: Ring

    /// The used index is in guest memory; notifications are wanted.
    mutating func start() {
        ring.nextUsed = load(used + 2)
        ring.signalled = nil
        ring.isWaiting = false
        setNotifications(true)
    }

    private func setNotifications(_ isOn: Bool) {
        if !hasEventIndex {
            store(isOn ? 0 : 1, used)
        } else if isOn {
            store(ring.nextAvailable, used + 4 + 8 * entries)
        }
    }

    /// The next chain, which is taken; nil: there is none.
    private mutating func next() throws -> (head: UInt16, pieces: [Piece])? {
        let index = load(available + 2)
        guard index != ring.nextAvailable else { return nil }
        guard index &- ring.nextAvailable <= ring.size else { throw Trouble() }
        let head = load(available + 4 + 2 * Int(ring.nextAvailable % ring.size))
        let table = pointer(ring.addresses!.descriptors)
        let pieces = try chain(head, table, entries, mayBeIndirect: true)
        ring.nextAvailable &+= 1
        return (head, pieces)
    }

    private func chain(
        _ head: UInt16, _ table: UnsafeMutableRawPointer, _ count: Int, mayBeIndirect: Bool
    ) throws -> [Piece] {
        var pieces: [Piece] = []
        var index = Int(head)
        for _ in 0..<count {
            guard index < count else { throw Trouble() }
            let place = table + 16 * index
            let address = place.load(as: UInt64.self)
            let length = Int(place.load(fromByteOffset: 8, as: UInt32.self))
            let flags = place.load(fromByteOffset: 12, as: UInt16.self)
            if flags & 4 != 0 {
                guard mayBeIndirect, length > 0, length % 16 == 0, length <= 16 << 16 else { throw Trouble() }
                return try chain(0, try translate(address, length), length / 16, mayBeIndirect: false)
            }
            pieces.append((try translate(address, length), length, flags & 2 != 0))
            guard pieces.reduce(0, { $0 + $1.count }) <= 1 << 20 else { throw Trouble() }
            guard flags & 1 != 0 else { return pieces }
            index = Int(place.load(fromByteOffset: 14, as: UInt16.self))
        }
        throw Trouble()
    }

    private mutating func use(_ chains: [(head: UInt16, written: Int)]) {
        for (head, written) in chains {
            let entry = used + 4 + 8 * Int(ring.nextUsed % ring.size)
            entry.storeBytes(of: UInt32(head), as: UInt32.self)
            entry.storeBytes(of: UInt32(written), toByteOffset: 4, as: UInt32.self)
            ring.nextUsed &+= 1
        }
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        store(ring.nextUsed, used + 2)
        signal()
    }

    private mutating func signal() {
        let (old, new) = (ring.signalled, ring.nextUsed)
        ring.signalled = new
        let isWanted: Bool
        if hasEventIndex {
            let event = load(available + 4 + 2 * entries)
            isWanted = old.map { new &- event &- 1 < new &- $0 } ?? true
        } else {
            isWanted = load(available) & 1 == 0
        }
        if isWanted { ring.events[.call]?.signal() }
    }

    private func fail() { ring.events[.error]?.signal() }

    // MARK: Frames

    mutating func transmit() {
        guard let tap = ring.tap else { return }
        ring.isFull = false
        setNotifications(false)
        do {
            while true {
                guard let (head, pieces) = try next() else {
                    setNotifications(true)
                    if load(available + 2) == ring.nextAvailable { return }
                    setNotifications(false)
                    continue
                }
                let bytes = pieces.filter { !$0.isWritable }.flatMap {
                    UnsafeRawBufferPointer(start: $0.address, count: $0.count)
                }
                guard bytes.count > Self.headerSize else { throw Trouble() }
                if write(tap, bytes, bytes.count) < 0, errno == EAGAIN {
                    ring.nextAvailable &-= 1
                    ring.isFull = true
                    return
                }
                use([(head, 0)])
            }
        } catch {
            fail()
        }
    }

    mutating func receive() {
        guard let tap = ring.tap, !ring.isWaiting else { return }
        setNotifications(false)
        do {
            var frame = [UInt8](repeating: 0, count: 70_000)
            while true {
                let count = recv(tap, &frame, frame.count, Int32(MSG_DONTWAIT | MSG_PEEK))
                guard count >= Self.headerSize else { return }
                guard let chains = try buffers(for: count) else {
                    ring.isWaiting = true
                    return
                }
                _ = recv(tap, &frame, frame.count, Int32(MSG_DONTWAIT))
                // The kernel sets the number of buffers only where it may be more than one.
                (frame[10], frame[11]) = merges ? (UInt8(chains.count), 0) : (0xEE, 0xEE)
                deliver(Array(frame.prefix(count)), chains)
            }
        } catch {
            fail()
        }
    }

    /// Enough buffers for so many bytes; nil: not yet, and the driver will notify.
    private mutating func buffers(for count: Int) throws -> [(head: UInt16, pieces: [Piece])]? {
        let start = ring.nextAvailable
        var chains: [(head: UInt16, pieces: [Piece])] = []
        var room = 0
        while room < count {
            guard let (head, pieces) = try next() else {
                let end = ring.nextAvailable
                setNotifications(true)
                if load(available + 2) != end {
                    setNotifications(false)
                    continue
                }
                ring.nextAvailable = start
                return nil
            }
            chains.append((head, pieces.filter(\.isWritable)))
            room += chains[chains.count - 1].pieces.reduce(0) { $0 + $1.count }
            if !merges { break }
        }
        return chains
    }

    private mutating func deliver(_ frame: [UInt8], _ chains: [(head: UInt16, pieces: [Piece])]) {
        var rest = frame[...]
        var done: [(head: UInt16, written: Int)] = []
        for (head, pieces) in chains {
            var written = 0
            for piece in pieces {
                let part = Array(rest.prefix(piece.count))
                rest = rest.dropFirst(part.count)
                part.withUnsafeBytes { bytes in
                    if let base = bytes.baseAddress { piece.address.copyMemory(from: base, byteCount: bytes.count) }
                }
                written += part.count
            }
            done.append((head, written))
        }
        use(done)
    }
}
