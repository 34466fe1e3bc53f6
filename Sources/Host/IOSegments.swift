/// Parts of this process's memory that one transfer fills or sends, with whatever keeps them mapped.
public struct IOSegments: @unchecked Sendable {
    // SAFETY: the memory behind the pointers is shared memory, which its users treat so, and `owner` keeps it mapped.
    public let buffers: [UnsafeMutableRawBufferPointer]
    let owner: AnyObject

    public init(_ buffers: [UnsafeMutableRawBufferPointer], owner: AnyObject) {
        self.buffers = buffers
        self.owner = owner
    }

    /// Bytes.
    public var count: Int { buffers.reduce(0) { $0 + $1.count } }
}
