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

    /// Maps `size` bytes (a multiple of 4096) without reserving swap.
    public init(size: Int) throws(HostError) {
        let result = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let result, result != MAP_FAILED else {
            throw HostError("Cannot map \(size >> 20) MiB of memory", errorNumber: errno)
        }
        address = result
        self.size = size
    }

    deinit { munmap(address, size) }
}
