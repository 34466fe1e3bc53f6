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

    /// errno(3) by name, for modules that do not know the C library.
    public enum Number {
        public static let noSpace = ENOSPC
        public static let noEntry = ENOENT
        public static let notPermitted = EACCES
        public static let invalid = EINVAL
        public static let interrupted = EINTR
        public static let again = EAGAIN
        public static let noLocks = ENOLCK
        public static let notImplemented = ENOSYS
        public static let notSupported = EOPNOTSUPP
    }
}

/// An anonymous mapping of host memory, page-aligned, zero-filled on first touch, between inaccessible pages, unmapped
/// with its last owner.
public final class HostMapping: @unchecked Sendable {
    // SAFETY: address and size never change; what lies behind the address is shared memory that its users treat so.
    public let address: UnsafeMutableRawPointer
    public let size: Int
    /// Address space with the memory inside: at least a huge page on each side, where an access ends the process.
    private let reservation: UnsafeMutableRawPointer
    private let reservedSize: Int
    private static let hugePageSize = 2 << 20

    /// Maps `size` bytes (a multiple of 4096) without reserving swap, in huge pages where the host has and allows them.
    public init(size: Int) throws(HostError) {
        let (reservedSize, isTooLarge) = size.addingReportingOverflow(3 * Self.hugePageSize)
        let result =
            isTooLarge
            ? MAP_FAILED : mmap(nil, reservedSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let result, result != MAP_FAILED else {
            throw HostError("Cannot map \(size >> 20) MiB of memory", errorNumber: isTooLarge ? ENOMEM : errno)
        }
        // Only aligned addresses can be huge pages.
        address = result + (-Int(bitPattern: result) & (Self.hugePageSize - 1)) + Self.hugePageSize
        if mprotect(address, size, PROT_READ | PROT_WRITE) != 0 {
            let number = errno
            munmap(result, reservedSize)
            throw HostError("Cannot map \(size >> 20) MiB of memory", errorNumber: number)
        }
        // A host without huge pages refuses, and all is as before.
        _ = madvise(address, size, MADV_HUGEPAGE)
        reservation = result
        self.reservedSize = reservedSize
        self.size = size
    }

    deinit { munmap(reservation, reservedSize) }
}
