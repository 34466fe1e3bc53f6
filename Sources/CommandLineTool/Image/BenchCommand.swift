internal import ArgumentParser
internal import Disk
internal import Host

/// `martlet image bench`: `qemu-img bench` with its patterns, so that the two can be compared.
struct BenchCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench",
        abstract: "Times requests to an image, one after the other; --write overwrites what is there.",
        discussion: """
            Request number I is at OFFSET + I × STEP, and starts again at OFFSET behind the disk's end. The time does not
            include opening and closing the image; what closing takes is said on a line of its own.
            """)

    @Option(name: .shortAndLong, help: ArgumentHelp("How many requests.", valueName: "n"))
    var count = 75_000

    @Option(
        name: [.customShort("s"), .long], help: ArgumentHelp("Bytes of a request.", valueName: "size"),
        transform: DiskSize.parse)
    var size = DiskSize(bytes: 4096)

    @Option(
        name: [.customShort("S"), .long],
        help: ArgumentHelp("From one request's start to the next one's (default: their size).", valueName: "size"),
        transform: DiskSize.parse)
    var step: DiskSize?

    @Option(
        name: .shortAndLong, help: ArgumentHelp("Where the first request is.", valueName: "offset"),
        transform: DiskSize.parse)
    var offset = DiskSize(bytes: 0)

    @Flag(name: .shortAndLong, help: "Write bytes of 0xff instead of reading.")
    var write = false

    @Option(help: ArgumentHelp("With --write: flush after each so many requests; 0 never.", valueName: "n"))
    var flushInterval = 0

    @Option(
        help: ArgumentHelp("The format: raw, qcow2; needed where the file has no qcow2 header.", valueName: "format"),
        transform: FormatOption.parse)
    var format: DiskFormat?

    @Argument(help: "The image.")
    var file: String

    /// So many bytes at once and no more: a request of a guest is not larger either.
    private static let largestRequest: UInt64 = 1 << 30

    func validate() throws {
        guard count > 0 else { throw ValidationError("--count must be at least 1") }
        guard flushInterval >= 0 else { throw ValidationError("--flush-interval must not be negative") }
        guard flushInterval == 0 || write else { throw ValidationError("--flush-interval goes with --write only") }
        guard (1...Self.largestRequest).contains(size.bytes) else {
            throw ValidationError("--size must be from 1 to 1G")
        }
    }

    func run() throws {
        try reportingDiskErrors { () throws(DiskError) in
            let (format, backing) = try FormatOption.resolve(file, self.format, option: "--format")
            var options = DiskImage.Options(isWritable: write)
            options.backing = backing
            let disk = try DiskImage.open(file, format, options)
            guard size.bytes <= disk.size, offset.bytes <= disk.size - size.bytes else {
                throw DiskError(
                    .outOfRange,
                    "\(file) has \(disk.size) bytes: \(size.bytes) at \(offset.bytes) go past its end")
            }
            let start = HostClock.monotonicNanoseconds
            try sendRequests(to: disk)
            let end = HostClock.monotonicNanoseconds
            try disk.close()
            let closed = HostClock.monotonicNanoseconds
            try printOut(
                "\(count) requests in \(Self.seconds(end - start)) s\nclosed in \(Self.seconds(closed - end)) s\n")
        }
    }

    private func sendRequests(to disk: any BlockDevice) throws(DiskError) {
        let buffer = PageBuffer([UInt8](repeating: 0xff, count: Int(size.bytes)))
        let last = disk.size - size.bytes
        var position = offset.bytes
        for number in 1...count {
            if write {
                try disk.write(buffer.memory, at: position)
                if flushInterval > 0, number % flushInterval == 0 { try disk.flush() }
            } else {
                try disk.read(into: buffer.memory, at: position)
            }
            let (next, overflow) = position.addingReportingOverflow(step?.bytes ?? size.bytes)
            position = overflow || next > last ? offset.bytes : next
        }
    }

    /// With six digits behind the point.
    private static func seconds(_ nanoseconds: UInt64) -> String {
        let microseconds = nanoseconds / 1000
        let fraction = String(microseconds % 1_000_000)
        return "\(microseconds / 1_000_000)." + String(repeating: "0", count: 6 - fraction.count) + fraction
    }
}
