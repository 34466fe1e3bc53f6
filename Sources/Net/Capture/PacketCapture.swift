internal import CHost
internal import Glibc
internal import Host
internal import Synchronization

/// `--capture FILE`: every frame that passed, with its direction, as pcapng (draft-ietf-opsawg-pcapng).
final class PacketCapture: Sendable {
    /// Seen from the host's end of the cable (epb_flags, draft §4.3.1).
    enum Direction: UInt32 {
        /// To the guest.
        case inbound = 1
        /// From the guest.
        case outbound = 2
    }

    private struct State: ~Copyable {
        var file: FileDescriptor?
        /// Where the last whole block ends.
        var size: UInt64 = 0
    }

    private let path: String
    private let network: String
    private let log: NetworkLog
    private let state: Mutex<State>

    init(path: String, network: String, log: @escaping NetworkLog) throws(NetworkError) {
        self.path = path
        self.network = network
        self.log = log
        let header = CaptureBlocks.sectionHeader() + CaptureBlocks.interfaceDescription(name: network)
        do {
            let file = try FileDescriptor.open(path, .create)
            try file.write(header)
            state = Mutex(State(file: file, size: UInt64(header.count)))
        } catch { throw .captureUnusable(path: path, reason: error.reason) }
    }

    /// Appends a frame that passed at the given time. A full disk ends the capture, not the machine. Frames of both
    /// directions come from two threads: their order is that of their times, not of the file.
    func write(_ frame: [UInt8], _ direction: Direction, nanoseconds: UInt64 = HostClock.realtimeNanoseconds) {
        let block = CaptureBlocks.packet(frame, direction, nanoseconds: nanoseconds)
        let failure: String? = state.withLock { state -> String? in
            guard state.file != nil else { return nil }
            do throws(HostError) {
                try state.file?.write(block)
                state.size &+= UInt64(block.count)
                return nil
            } catch {
                // A half-written block would make readers complain about the file.
                if let number = state.file?.rawValue { _ = host_truncate(number, state.size) }
                state.file = nil
                return error.reason
            }
        }
        if let failure { log(.captureStopped(network: network, path: path, reason: failure)) }
    }
}

/// The blocks of a pcapng file. Little-endian, which the section header tells.
enum CaptureBlocks {
    private enum BlockType {
        static let sectionHeader: UInt32 = 0x0A0D_0D0A
        static let interfaceDescription: UInt32 = 1
        static let enhancedPacket: UInt32 = 6
    }

    private enum OptionCode {
        static let end: UInt16 = 0
        static let interfaceName: UInt16 = 2
        static let userApplication: UInt16 = 4
        static let packetFlags: UInt16 = 2
        static let timestampResolution: UInt16 = 9
    }

    private static let byteOrderMagic: UInt32 = 0x1A2B_3C4D
    private static let linkTypeEthernet: UInt16 = 1

    /// Draft §4.1; the section's length is not known (-1).
    static func sectionHeader() -> [UInt8] {
        var body: [UInt8] = []
        append(byteOrderMagic, to: &body)
        append(UInt16(1), to: &body)
        append(UInt16(0), to: &body)
        append(UInt64.max, to: &body)
        appendOption(OptionCode.userApplication, Array("Martlet".utf8), to: &body)
        append(OptionCode.end, to: &body)
        append(UInt16(0), to: &body)
        return block(BlockType.sectionHeader, body)
    }

    /// Draft §4.2; timestamps in 10^-9 s, frames never cut.
    static func interfaceDescription(name: String) -> [UInt8] {
        var body: [UInt8] = []
        append(linkTypeEthernet, to: &body)
        append(UInt16(0), to: &body)
        append(UInt32(0), to: &body)
        appendOption(OptionCode.interfaceName, Array(name.utf8.prefix(256)), to: &body)
        appendOption(OptionCode.timestampResolution, [9], to: &body)
        append(OptionCode.end, to: &body)
        append(UInt16(0), to: &body)
        return block(BlockType.interfaceDescription, body)
    }

    /// Draft §4.3.
    static func packet(_ frame: [UInt8], _ direction: PacketCapture.Direction, nanoseconds: UInt64) -> [UInt8] {
        var body: [UInt8] = []
        body.reserveCapacity(frame.count + 48)
        append(UInt32(0), to: &body)
        append(UInt32(truncatingIfNeeded: nanoseconds >> 32), to: &body)
        append(UInt32(truncatingIfNeeded: nanoseconds), to: &body)
        append(UInt32(clamping: frame.count), to: &body)
        append(UInt32(clamping: frame.count), to: &body)
        body += frame
        pad(&body)
        var flags: [UInt8] = []
        append(direction.rawValue, to: &flags)
        appendOption(OptionCode.packetFlags, flags, to: &body)
        append(OptionCode.end, to: &body)
        append(UInt16(0), to: &body)
        return block(BlockType.enhancedPacket, body)
    }

    /// Type, length, body, length again (draft §3.1).
    private static func block(_ type: UInt32, _ body: [UInt8]) -> [UInt8] {
        var result: [UInt8] = []
        let length = UInt32(clamping: body.count + 12)
        result.reserveCapacity(body.count + 12)
        append(type, to: &result)
        append(length, to: &result)
        result += body
        append(length, to: &result)
        return result
    }

    private static func appendOption(_ code: UInt16, _ value: [UInt8], to body: inout [UInt8]) {
        append(code, to: &body)
        append(UInt16(clamping: value.count), to: &body)
        body += value
        pad(&body)
    }

    private static func pad(_ bytes: inout [UInt8]) {
        while !bytes.count.isMultiple(of: 4) { bytes.append(0) }
    }

    private static func append<T: FixedWidthInteger>(_ value: T, to bytes: inout [UInt8]) {
        for index in 0..<(T.bitWidth / 8) { bytes.append(UInt8(truncatingIfNeeded: value >> T(index * 8))) }
    }
}
