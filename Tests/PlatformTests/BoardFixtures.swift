import DeviceModel
import Fuzzing
import GuestMemory
import Host
import Platform
import Synchronization
import X86

/// Remembers every level it was given.
final class RecordingLine: InterruptLine {
    private let history = Mutex<[Bool]>([])

    func setLevel(_ level: Bool) { history.withLock { $0.append(level) } }
    var levels: [Bool] { history.withLock { $0 } }
    var level: Bool { levels.last ?? false }
}

/// Keeps what the guest sent, up to a capacity that the test may change.
final class RecordingSink: SerialSink {
    private let state: Mutex<(bytes: [UInt8], capacity: Int)>

    init(capacity: Int = .max) { state = Mutex(([], capacity)) }

    func write(_ byte: UInt8) -> Bool {
        state.withLock { state in
            guard state.bytes.count < state.capacity else { return false }
            state.bytes.append(byte)
            return true
        }
    }

    var bytes: [UInt8] { state.withLock { $0.bytes } }
    func setCapacity(_ capacity: Int) { state.withLock { $0.capacity = capacity } }
}

/// Counts calls, and keeps what they said.
final class Recorder<Value: Sendable>: Sendable {
    private let stored = Mutex<[Value]>([])

    func append(_ value: Value) { stored.withLock { $0.append(value) } }
    var values: [Value] { stored.withLock { $0 } }
    var count: Int { values.count }
}

/// A clock that stands still until told.
final class TestClock: Sendable {
    private let time: Mutex<Duration>

    init(_ start: Duration) { time = Mutex(start) }

    var now: Duration { time.withLock { $0 } }
    func advance(by duration: Duration) { time.withLock { $0 += duration } }
}

final class RecordingTimer: DeviceTimer {
    private let last = Mutex<Duration?>(nil)

    func arm(at deadline: Duration?) { last.withLock { $0 = deadline } }
    var deadline: Duration? { last.withLock { $0 } }
}

func makeMemory(_ layout: PhysicalMemoryMap) throws -> GuestMemory {
    GuestMemory(
        regions: try layout.ramRanges.map {
            MemoryRegion(base: $0.base, mapping: try HostMapping(size: Int($0.size)))
        })
}

extension BusDevice {
    func load(_ offset: UInt64, _ width: AccessWidth = .byte) -> UInt64 {
        if case .value(let value) = read(offset: offset, width: width) { value } else { width.mask }
    }

    func store(_ value: UInt64, _ offset: UInt64, _ width: AccessWidth = .byte) {
        _ = write(offset: offset, width: width, value: value)
    }

    /// Random accesses of every width inside and a little outside of the registers; reads must fit their width.
    func endureRandomAccesses(seed: UInt64, count: Int = 20_000, span: UInt64 = 20) -> Bool {
        var random = SeededGenerator(seed: seed)
        let widths: [AccessWidth] = [.byte, .byte, .byte, .word, .double, .quad]
        for _ in 0..<count {
            let offset = random.next() % 50 == 0 ? random.next() : random.next() % span
            let width = widths[Int(random.next() % 6)]
            if random.next() & 1 == 0 {
                if case .value(let value) = read(offset: offset, width: width), value & ~width.mask != 0 {
                    return false
                }
            } else {
                _ = write(offset: offset, width: width, value: random.next() & width.mask)
            }
        }
        return true
    }
}

extension [UInt8] {
    func number<T: FixedWidthInteger>(_ type: T.Type = T.self, _ offset: Int) -> T {
        (0..<T.bitWidth / 8).reduce(0) { $0 | T(truncatingIfNeeded: self[offset + $1]) << T($1 * 8) }
    }

    mutating func put<T: FixedWidthInteger>(_ value: T, _ offset: Int) {
        for index in 0..<T.bitWidth / 8 { self[offset + index] = UInt8(truncatingIfNeeded: value >> T(index * 8)) }
    }
}
