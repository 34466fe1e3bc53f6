/// Bits of a file's mode (inode(7)); the same in the FUSE protocol and on the host.
enum FileMode {
    static let typeMask: UInt32 = 0o170000
    static let regular: UInt32 = 0o100000
    static let directory: UInt32 = 0o040000
    static let symbolicLink: UInt32 = 0o120000

    static let setUser: UInt32 = 0o4000
    static let setGroup: UInt32 = 0o2000
    static let groupExecutes: UInt32 = 0o0010
}
