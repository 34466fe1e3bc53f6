internal import ArgumentParser
internal import Host
internal import VMM
internal import Virtio

/// `--vsock CID,PATH`: all behind the first comma is the path.
struct SocketOption: Equatable {
    var guestCID: UInt32
    var path: String

    static func parse(_ text: String) throws -> SocketOption {
        let parts = text.split(separator: ",", maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.count == 2, let cid = UInt32(parts[0]), !parts[1].isEmpty else {
            throw ValidationError("It is the guest's number and a socket's name: 3,/run/user/1000/guest.sock.")
        }
        // 0, 1 and 2 are for hypervisor, loopback and host, the last is for any (vsock(7)).
        guard cid >= 3, cid < .max else { throw ValidationError("The guest's number must be 3 to 4294967294.") }
        return SocketOption(guestCID: cid, path: String(parts[1]))
    }

    /// Begins to listen, for all restarts of the machine.
    func open() throws(MachineError) -> DeviceConfiguration {
        do throws(HostError) {
            return .socket(try SocketEndpoint(path: path, guestCID: guestCID))
        } catch {
            let hint =
                error.isAddressInUse
                ? "Another machine listens there; choose another name."
                : "Choose another name, of at most 96 bytes, in a folder that you may write to."
            throw MachineError("Cannot listen at \(path): \(error.reason). \(hint)")
        }
    }
}
