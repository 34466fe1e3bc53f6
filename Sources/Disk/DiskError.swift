internal import Host

/// Trouble with a disk: what kind it is, for programs, and one line for a person.
public struct DiskError: Error, Equatable, CustomStringConvertible {
    public enum Kind: Equatable, Sendable {
        /// The host kernel said so, by this errno.
        case host(Int32)
        /// The image contradicts itself or its format.
        case corrupt
        /// The image, or what is asked of it, needs what is not implemented.
        case unsupported
        /// Somebody else uses the image.
        case inUse
        /// A write to what was opened for reading, or must not be written any more.
        case readOnly
        /// Beyond the end of the disk.
        case outOfRange
        /// What was asked for cannot be: options, names, sizes.
        case invalid
        /// The file is not in the format that it was opened as.
        case wrongFormat
        /// The caller stopped it.
        case cancelled
    }

    public var kind: Kind
    /// What failed with its values, why, and what to do next.
    public var description: String

    public init(_ kind: Kind, _ description: String) {
        self.kind = kind
        self.description = description
    }

    init(_ error: HostError) {
        self.init(.host(error.errorNumber), "\(error.description)\(DiskError.advice(error.errorNumber))")
    }

    /// What does not grow is full: a block device.
    static func noRoom(_ path: String) -> DiskError {
        DiskError(HostError("Cannot make \(path) larger", errorNumber: HostError.Number.noSpace))
    }

    private static func advice(_ errorNumber: Int32) -> String {
        switch errorNumber {
        case HostError.Number.noSpace: ". Make room on that file system and try again"
        case HostError.Number.noEntry, HostError.Number.notPermitted: ". Check the path and its permissions"
        default: ""
        }
    }
}

/// Calls the host, and says its trouble as a disk's.
func host<Result>(_ call: () throws(HostError) -> Result) throws(DiskError) -> Result {
    do throws(HostError) {
        return try call()
    } catch {
        throw DiskError(error)
    }
}
