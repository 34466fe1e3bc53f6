internal import Host

/// Keeps others from an image that is in use, in the way that QEMU's processes keep each other from theirs, so that both
/// sides notice each other. For each thing that one may do with an image there are two bytes in the file: a lock at
/// 100 + n says "I do this", one at 200 + n says "nobody else may". All locks are shared ones, so that several users can
/// say the same; a conflict is seen by asking for the other byte.
final class ImageLock: Sendable {
    /// The numbers of the things to do: they are QEMU's permission bits.
    private enum Permission: UInt64, CaseIterable {
        case consistentRead = 0
        case write = 1
        case resize = 3
    }

    private static let doing: UInt64 = 100
    private static let refusing: UInt64 = 200

    private let file: BlockFile

    /// The open file keeps the locks; they go at the latest when it is closed.
    init(_ file: BlockFile) throws(DiskError) {
        self.file = file
        let doing: [Permission] = file.isWritable ? [.consistentRead, .write, .resize] : [.consistentRead]
        let refusing: [Permission] = [.write, .resize]
        do throws(HostError) {
            for permission in doing { try file.lockShared(byte: ImageLock.doing + permission.rawValue) }
            for permission in refusing { try file.lockShared(byte: ImageLock.refusing + permission.rawValue) }
        } catch {
            // Some network file systems have no locks: QEMU goes on without, and so does this.
            let hasNone = [HostError.Number.notSupported, HostError.Number.notImplemented, HostError.Number.noLocks]
            if hasNone.contains(error.errorNumber) { return }
            throw DiskError(error)
        }
        let isFree = try host { () throws(HostError) in
            for permission in doing where try file.isLockedByOther(byte: ImageLock.refusing + permission.rawValue) {
                return false
            }
            for permission in refusing where try file.isLockedByOther(byte: ImageLock.doing + permission.rawValue) {
                return false
            }
            return true
        }
        guard !isFree else { return }
        release()
        let purpose = file.isWritable ? "open \(file.path) for writing" : "open \(file.path)"
        throw DiskError(
            .inUse, "Cannot \(purpose): another process uses this image. Stop that virtual machine or tool first")
    }

    func release() {
        for permission in Permission.allCases {
            file.unlock(byte: ImageLock.doing + permission.rawValue)
            file.unlock(byte: ImageLock.refusing + permission.rawValue)
        }
    }
}
