internal import CHost
internal import Host
internal import Hypervisor

/// Any of KVM's descriptors: an open file with ioctls.
final class KVMDescriptor: Sendable {
    private let descriptor: FileDescriptor

    init(owning number: Int) { descriptor = FileDescriptor(owning: Int32(truncatingIfNeeded: number)) }

    init(_ descriptor: consuming FileDescriptor) { self.descriptor = descriptor }

    var rawValue: Int32 { descriptor.rawValue }

    /// An ioctl whose argument is a number or nothing.
    @discardableResult
    func call(_ operation: String, _ request: UInt, value: UInt = 0) throws(HypervisorError) -> Int {
        try result(of: host_ioctl_value(rawValue, request, value), operation)
    }

    /// An ioctl that takes one of KVM's C structures. (Those with a union are not BitwiseCopyable to the compiler.)
    @discardableResult
    func call<T>(_ operation: String, _ request: UInt, with argument: T) throws(HypervisorError) -> Int {
        var argument = argument
        return try withUnsafeMutablePointer(to: &argument) { pointer throws(HypervisorError) in
            try result(of: host_ioctl(rawValue, request, pointer), operation)
        }
    }

    /// An ioctl that fills one of KVM's C structures in.
    func get<T>(_ operation: String, _ request: UInt, into initial: T) throws(HypervisorError) -> T {
        var value = initial
        try withUnsafeMutablePointer(to: &value) { pointer throws(HypervisorError) in
            _ = try result(of: host_ioctl(rawValue, request, pointer), operation)
        }
        return value
    }

    /// An ioctl whose structure is a header with a count, followed by that many entries (kvm_cpuid2, kvm_msrs). Returns
    /// the ioctl's result and what it left in the header and in the entries.
    func callWithEntries<Header: BitwiseCopyable, Entry: BitwiseCopyable>(
        _ operation: String, _ request: UInt, header: Header, entries: [Entry]
    ) throws(HypervisorError) -> (result: Int, header: Header, entries: [Entry]) {
        let headerSize = MemoryLayout<Header>.size
        let entriesSize = entries.count * MemoryLayout<Entry>.stride
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: headerSize + entriesSize, alignment: 16)
        defer { buffer.deallocate() }
        buffer.storeBytes(of: header, as: Header.self)
        entries.withUnsafeBytes { UnsafeMutableRawBufferPointer(rebasing: buffer[headerSize...]).copyMemory(from: $0) }
        let status = try result(of: host_ioctl(rawValue, request, buffer.baseAddress), operation)
        let left = entries.indices.map {
            buffer.loadUnaligned(fromByteOffset: headerSize + $0 * MemoryLayout<Entry>.stride, as: Entry.self)
        }
        return (status, buffer.load(as: Header.self), left)
    }

    /// An ioctl on a structure of so many bytes that only the kernel knows how many; returns what it left there.
    @discardableResult
    func call(_ operation: String, _ request: UInt, bytes: [UInt8]) throws(HypervisorError) -> [UInt8] {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 64)
        defer { buffer.deallocate() }
        buffer.copyBytes(from: bytes)
        try result(of: host_ioctl(rawValue, request, buffer.baseAddress), operation)
        return Array(buffer)
    }

    @discardableResult
    private func result(of result: Int, _ operation: String) throws(HypervisorError) -> Int {
        guard result >= 0 else {
            let error = HostError(operation, errorNumber: Int32(truncatingIfNeeded: -result))
            throw HypervisorError(operation, errorNumber: error.errorNumber, detail: error.reason)
        }
        return result
    }
}
