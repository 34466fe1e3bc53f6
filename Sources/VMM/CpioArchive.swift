/// Writes the "newc" archive format that Linux unpacks into its first root file system
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
public struct CpioArchive: Sendable {
    private var bytes: [UInt8] = []
    private var inode: UInt32 = 0xf000_0000

    public init() {}

    public mutating func addDirectory(_ path: String) {
        add(path, mode: 0o040755, contents: [])
    }

    public mutating func addFile(_ path: String, contents: [UInt8], isExecutable: Bool = false) {
        add(path, mode: isExecutable ? 0o100755 : 0o100644, contents: contents)
    }

    /// The archive with its trailer.
    public func finished() -> [UInt8] {
        var archive = self
        archive.add("TRAILER!!!", mode: 0, contents: [])
        return archive.bytes
    }

    private mutating func add(_ path: String, mode: UInt32, contents: [UInt8]) {
        inode &+= 1
        let name = Array(path.utf8) + [0]
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields: [UInt32] = [
            inode, mode, 0, 0, 1, 0, UInt32(truncatingIfNeeded: contents.count), 0, 0, 0, 0,
            UInt32(truncatingIfNeeded: name.count), 0,
        ]
        bytes += Array("070701".utf8)
        for field in fields {
            let digits = String(field, radix: 16, uppercase: true)
            bytes += Array(String(repeating: "0", count: 8 - digits.count).utf8) + Array(digits.utf8)
        }
        bytes += name
        pad()
        bytes += contents
        pad()
    }

    private mutating func pad() {
        while !bytes.count.isMultiple(of: 4) { bytes.append(0) }
    }
}
