internal import Glibc

/// The name of something in a directory: one component, never a way out of it. Any bytes but `/` and NUL, as Linux has
/// it; not `.` and `..`.
struct FileName: Hashable, Sendable {
    /// With a NUL at the end.
    let bytes: [CChar]

    static let limit = 255

    init(_ text: some Collection<UInt8>) throws(ShareFault) {
        guard !text.isEmpty else { throw ShareFault(ENOENT) }
        guard text.count <= Self.limit else { throw ShareFault(ENAMETOOLONG) }
        guard !text.contains(0x2F), !text.contains(0) else { throw ShareFault(EINVAL) }
        guard !text.allSatisfy({ $0 == 0x2E }) || text.count > 2 else { throw ShareFault(EINVAL) }
        bytes = text.map { CChar(bitPattern: $0) } + [0]
    }

    /// Without the NUL.
    var text: [UInt8] { bytes.dropLast().map { UInt8(bitPattern: $0) } }
}
