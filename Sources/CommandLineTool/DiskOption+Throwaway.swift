internal import Disk
internal import VMM
internal import Virtio

/// `--snapshot`.
extension DiskOption {
    /// `$TMPDIR`, or /tmp.
    static var temporaryDirectory: String {
        environmentVariable("TMPDIR").flatMap { $0.isEmpty ? nil : $0 } ?? "/tmp"
    }

    /// The disk's writes go to a file without a name in `directory`. They are gone afterwards: no flush of the guest has
    /// to reach the medium.
    func openForThrowaway(_ directory: String) throws(MachineError) -> DeviceConfiguration {
        do throws(DiskError) {
            let image = try DiskImage.openForThrowaway(path, try imageFormat(), directory: directory)
            var options = options
            options.cache = .unsafe
            return .disk(ImageDisk(image), options)
        } catch {
            let hint = error.kind == .inUse ? " End the other machine, or give --snapshot to both." : ""
            throw MachineError("Cannot use the disk \(path): \(error).\(hint)")
        }
    }
}
