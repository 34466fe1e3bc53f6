public import Disk
public import Host

/// A disk whose bytes are in an image of whatever format.
public final class ImageDisk: BlockBackend {
    private let device: any BlockDevice

    public init(_ device: any BlockDevice) { self.device = device }

    public var size: UInt64 { device.size }
    public var isReadOnly: Bool { device.capabilities.isReadOnly }

    public func read(into segments: IOSegments, at offset: UInt64) throws(BlockError) {
        try translating { () throws(DiskError) in try device.read(into: TransferMemory(segments), at: offset) }
    }

    public func write(from segments: IOSegments, at offset: UInt64) throws(BlockError) {
        try translating { () throws(DiskError) in try device.write(TransferMemory(segments), at: offset) }
    }

    public func lease(_ segments: IOSegments, at offset: UInt64, forWriting: Bool) -> BlockLease? {
        device.lease(TransferMemory(segments), at: offset, forWriting: forWriting)
    }

    public func flush() throws(BlockError) {
        try translating { () throws(DiskError) in try device.flush() }
    }

    public func discard(at offset: UInt64, count: UInt64) throws(BlockError) {
        try translating { () throws(DiskError) in try device.discard(offset..<offset + count) }
    }

    public func writeZeroes(at offset: UInt64, count: UInt64, mayUnmap: Bool) throws(BlockError) {
        try translating { () throws(DiskError) in
            try device.writeZeroes(offset..<offset + count, mayUnmap: mayUnmap)
        }
    }

    /// What is in memory yet of the image's tables gets into its file.
    public func close() throws(BlockError) {
        try translating { () throws(DiskError) in try device.close() }
    }

    private func translating(_ body: () throws(DiskError) -> Void) throws(BlockError) {
        do throws(DiskError) {
            try body()
        } catch {
            // ENOSPC and EDQUOT.
            let isFull = error.kind == .host(28) || error.kind == .host(122)
            throw BlockError("\(error)", isUnsupported: error.kind == .unsupported, isOutOfSpace: isFull)
        }
    }
}
