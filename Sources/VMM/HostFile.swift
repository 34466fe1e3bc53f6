internal import Host
public import Platform

/// A file of the host as the boot loaders read it: checked when it is opened, so that what is wrong with it is said
/// before a machine is built.
public struct HostFile: BootFile {
    private let file: RandomAccessFile
    public let name: String
    public var size: UInt64 { file.size }

    /// `role` is what the file is for: "kernel", "initrd".
    public init(path: String, role: String) throws(MachineError) {
        do {
            file = try RandomAccessFile(path: path)
        } catch {
            throw MachineError("Cannot open the \(role) \(path): \(error.reason). Check the path and its permissions.")
        }
        name = path
        guard file.size > 0 else {
            throw MachineError("The \(role) \(path) is empty. Get the file again.")
        }
    }

    public func read(count: Int, at offset: UInt64) throws(BootFileError) -> [UInt8] {
        let bytes: [UInt8]
        do {
            bytes = try file.read(count: count, at: offset)
        } catch {
            throw BootFileError(error.reason)
        }
        guard bytes.count == count else { throw BootFileError("it ended early: did it change while it was read?") }
        return bytes
    }
}

/// Two files in a row with the second aligned to four bytes, as Linux wants concatenated initramfs archives
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
public struct JoinedFile: BootFile {
    private let first: any BootFile
    private let second: [UInt8]
    private let secondOffset: UInt64
    public var name: String { first.name }
    public var size: UInt64 { secondOffset &+ UInt64(second.count) }

    public init(_ first: any BootFile, followedBy second: [UInt8]) {
        self.first = first
        self.second = second
        secondOffset = (first.size &+ 3) & ~3
    }

    public func read(count: Int, at offset: UInt64) throws(BootFileError) -> [UInt8] {
        guard count >= 0, offset <= size, UInt64(count) <= size &- offset else {
            throw BootFileError("it is shorter than expected")
        }
        let end = offset &+ UInt64(count)
        var bytes: [UInt8] = []
        bytes.reserveCapacity(count)
        if offset < first.size {
            bytes = try first.read(count: Int(min(end, first.size) &- offset), at: offset)
        }
        while offset &+ UInt64(bytes.count) < min(end, secondOffset) {
            bytes.append(0)
        }
        let position = offset &+ UInt64(bytes.count)
        if position < end {
            let start = Int(position &- secondOffset)
            bytes += second[start..<start + Int(end &- position)]
        }
        return bytes
    }
}
