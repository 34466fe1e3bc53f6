public import DeviceModel
internal import FileShare

/// A file system device's own saved state, version 1: its tag, and what the share's guest knows and has open, by names.
public struct VirtioFileSystemSavedState: DeviceSavedState {
    public static let identifier = "virtio-fs"
    public static let version: UInt32 = 1

    var tag: [UInt8]
    var share: ShareSnapshot

    /// More than any share has.
    private static let countLimit: UInt32 = 1 << 21
    private static let nameLimit = 255

    init(tag: [UInt8], share: ShareSnapshot) {
        self.tag = tag
        self.share = share
    }

    public func encode(into encoder: inout StateEncoder) {
        encoder.write(tag)
        encoder.write(share.isInitialized)
        encoder.write(share.rootDevice)
        encoder.write(share.nextNode)
        encoder.write(share.nextHandle)
        encoder.write(UInt32(clamping: share.nodes.count))
        for node in share.nodes {
            encoder.write(node.identifier)
            encoder.write(node.parent)
            encoder.write(node.name)
            encoder.write(node.device)
            encoder.write(node.inode)
            encoder.write(node.birth)
            encoder.write(node.type)
            encoder.write(node.lookups)
        }
        encoder.write(UInt32(clamping: share.handles.count))
        for handle in share.handles {
            encoder.write(handle.number)
            encoder.write(handle.node)
            encoder.write(handle.flags)
            encoder.write(handle.isDirectory)
        }
        encoder.write(UInt32(clamping: share.locks.count))
        for lock in share.locks {
            encoder.write(lock.node)
            encoder.write(lock.owner)
            encoder.write(lock.start)
            encoder.write(lock.end)
            encoder.write(lock.isWrite)
            encoder.write(lock.process)
        }
    }

    private static func count(_ field: String, _ decoder: inout StateDecoder) throws(SavedStateError) -> UInt32 {
        let count: UInt32 = try decoder.read()
        guard count <= countLimit else { throw .invalid(identifier: identifier, field: field) }
        return count
    }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        tag = try decoder.readBytes("tag", limit: FileSystemConfiguration.tagSize)
        share = ShareSnapshot(
            isInitialized: try decoder.readBool("isInitialized"), rootDevice: try decoder.read(),
            nextNode: try decoder.read(), nextHandle: try decoder.read(), nodes: [], handles: [], locks: [])
        for _ in 0..<(try Self.count("nodes", &decoder)) {
            share.nodes.append(
                ShareSnapshot.SavedNode(
                    identifier: try decoder.read(), parent: try decoder.read(),
                    name: try decoder.readBytes("name", limit: Self.nameLimit), device: try decoder.read(),
                    inode: try decoder.read(), birth: try decoder.read(), type: try decoder.read(),
                    lookups: try decoder.read()))
        }
        for _ in 0..<(try Self.count("handles", &decoder)) {
            share.handles.append(
                ShareSnapshot.SavedHandle(
                    number: try decoder.read(), node: try decoder.read(), flags: try decoder.read(),
                    isDirectory: try decoder.readBool("isDirectory")))
        }
        for _ in 0..<(try Self.count("locks", &decoder)) {
            share.locks.append(
                ShareSnapshot.SavedLock(
                    node: try decoder.read(), owner: try decoder.read(), start: try decoder.read(),
                    end: try decoder.read(), isWrite: try decoder.readBool("isWrite"), process: try decoder.read()))
        }
    }
}
