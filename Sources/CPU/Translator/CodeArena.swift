internal import CHost
internal import Glibc

/// Memory for translated code: one memfd, mapped once for writing and once for executing (W^X). Bounded; filled from
/// the start, emptied as a whole.
final class CodeArena {
    static let size = 16 << 20

    private var writable: UnsafeMutableRawPointer?
    private var executable: UnsafeMutableRawPointer?
    private(set) var used = 0

    init() {
        var data: UnsafeMutableRawPointer?
        var code: UnsafeMutableRawPointer?
        if martlet_map_code(Self.size, &data, &code) == 0 {
            writable = data
            executable = code
        }
    }

    deinit {
        if let writable, let executable { martlet_unmap_code(Self.size, writable, executable) }
    }

    /// False where the host maps no executable memory: everything is interpreted then.
    var isAvailable: Bool { executable != nil }

    /// Where the next code goes, for writing, and how much room there is.
    var room: (base: UnsafeMutablePointer<UInt8>, capacity: Int)? {
        writable.map { (($0 + used).assumingMemoryBound(to: UInt8.self), Self.size - used) }
    }

    /// Keeps `count` bytes written at `room` and returns where they execute.
    func keep(_ count: Int) -> UnsafeMutableRawPointer {
        let start = executable.unsafelyUnwrapped + used
        used = (used + count + 15) & ~15
        return start
    }

    /// The address at which the code that is being written at offset `position` of `room` will execute.
    func address(ofRoom position: Int) -> UInt64 {
        UInt64(UInt(bitPattern: executable.unsafelyUnwrapped)) &+ UInt64(used + position)
    }

    func reset() { used = 0 }
}
