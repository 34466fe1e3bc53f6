internal import CHost
internal import Glibc

/// Trouble that the host kernel reported: the call that failed, its object, and the errno.
public struct HostError: Error, Equatable, CustomStringConvertible {
    public var operation: String
    public var errorNumber: Int32

    public init(_ operation: String, errorNumber: Int32) {
        self.operation = operation
        self.errorNumber = errorNumber
    }

    /// The C library's words for the errno.
    public var reason: String { String(cString: strerror(errorNumber)) }

    public var description: String { "\(operation): \(reason)" }
}

/// An anonymous mapping of host memory, page-aligned, zero-filled on first touch, unmapped with its last owner.
public final class HostMapping: @unchecked Sendable {
    // SAFETY: address and size never change; what lies behind the address is shared memory that its users treat so.
    public let address: UnsafeMutableRawPointer
    public let size: Int

    /// Maps `size` bytes (a multiple of 4096) without reserving swap, in huge pages where the host has and allows them.
    public init(size: Int) throws(HostError) {
        let reserved = size + Self.hugePageSize
        let result = mmap(nil, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let result, result != MAP_FAILED else {
            throw HostError("Cannot map \(size >> 20) MiB of memory", errorNumber: errno)
        }
        // Only aligned addresses can be huge pages; what is mapped around them goes back.
        let excess = -Int(bitPattern: result) & (Self.hugePageSize - 1)
        address = result + excess
        self.size = size
        if excess > 0 { munmap(result, excess) }
        if excess < Self.hugePageSize { munmap(address + size, Self.hugePageSize - excess) }
        // A host without huge pages refuses, and all is as before.
        _ = madvise(address, size, MADV_HUGEPAGE)
    }

    private static let hugePageSize = 2 << 20

    deinit { munmap(address, size) }
}
