internal import Host
internal import Virtio

/// The io_uring of a disk: each has its own, and its own thread, since a copy from the page cache takes its time.
enum DiskRing {
    /// nil: the disk's requests are executed by threads, or in the guest's exits.
    static func make(
        for configuration: DeviceConfiguration, isImmediate: Bool
    ) throws(MachineError) -> SubmissionRing? {
        guard case .disk(_, let options) = configuration, options.transfers != .threads else { return nil }
        let isWanted = options.transfers == .ioUring
        if isImmediate {
            guard !isWanted else {
                throw MachineError(
                    "--engine lockstep has no aio=io_uring: disks act only in the guest's own steps there. "
                        + "Leave it out or choose another --engine.")
            }
            return nil
        }
        do throws(HostError) {
            return try SubmissionRing()
        } catch {
            guard isWanted else { return nil }
            throw MachineError(
                "\(error). aio=io_uring needs a host that allows it: see sysctl kernel.io_uring_disabled, "
                    + "seccomp filters of containers, and ulimit -l. Or use aio=threads.")
        }
    }
}

extension DeviceConfiguration {
    /// Whether the device works long on the thread that hears its doorbells.
    func worksWhereNotified(ring: SubmissionRing?) -> Bool {
        if case .fileSystem = self { return true }
        return ring != nil
    }
}
