internal import ArgumentParser
internal import FileShare
internal import VMM

/// `--share HOSTDIR:TAG[:ro]`. A tag has no colon, a folder may.
struct ShareOption: Equatable {
    var path: String
    var tag: String
    var isReadOnly = false

    /// What a mount point under /mnt can be called, and a tag of the device can hold (Virtio 1.2 §5.11.4).
    private static let tagLimit = 36

    static func parse(_ text: String) throws -> ShareOption {
        var parts = text.split(separator: ":", omittingEmptySubsequences: false)
        let isReadOnly = parts.count > 2 && parts.last == "ro"
        if isReadOnly { parts.removeLast() }
        guard parts.count > 1, let tag = parts.popLast() else {
            throw ValidationError("It is a folder and a name for it in the guest: /srv/data:data or /srv/data:data:ro.")
        }
        guard tag != "ro" else {
            throw ValidationError("Before :ro comes a name for the folder in the guest: /srv/data:data:ro.")
        }
        let path = parts.joined(separator: ":")
        guard !path.isEmpty else { throw ValidationError("A folder's name comes first: /srv/data:data.") }
        let isPlain = tag.utf8.allSatisfy { byte in
            (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte)
                || [0x2D, 0x2E, 0x5F].contains(byte)
        }
        guard isPlain, (1...tagLimit).contains(tag.utf8.count), tag.utf8.first != 0x2E, tag.utf8.first != 0x2D else {
            throw ValidationError(
                "The name in the guest, \(tag), must be 1 to \(tagLimit) letters, digits, '-', '_' and '.'.")
        }
        return ShareOption(path: path, tag: String(tag), isReadOnly: isReadOnly)
    }

    /// Opens the folder, which stays open for all restarts of the machine; one of `count` that are shared.
    func open(of count: Int) throws(MachineError) -> DeviceConfiguration {
        do throws(FileShareError) {
            return .fileSystem(
                try FileShare(path: path, isReadOnly: isReadOnly, descriptorShare: max(count, 1)), tag: tag)
        } catch {
            throw MachineError("Cannot share \(path): \(error). Give a folder that you may read.")
        }
    }
}
