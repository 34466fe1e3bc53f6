internal import ArgumentParser
internal import Disk

/// `martlet image info`.
struct InfoCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "info",
        abstract: "Says what an image is. It may be in use meanwhile.")

    @Flag(help: "For programs: JSON with the names that qemu-img uses.")
    var json = false

    @Flag(help: "The backing files, too.")
    var backingChain = false

    @Option(
        help: ArgumentHelp("The format: raw, qcow2; else what the header says.", valueName: "format"),
        transform: FormatOption.parse)
    var format: DiskFormat?

    @Argument(help: "The image.")
    var file: String

    func run() throws {
        try reportingDiskErrors { () throws(DiskError) in
            // Looking at a header needs nobody's promise: what is not qcow2 is told as raw.
            let recognized = try DiskImage.recognize(file)
            let format = self.format ?? recognized ?? .raw
            let infos =
                backingChain
                ? try ImageInfo.chain(file, format, sharing: .forced)
                : [try ImageInfo(file, format, sharing: .forced)]
            if json {
                let values = infos.map(InfoCommand.json)
                try printOut((backingChain ? JSONText.array(values) : values[0]).text() + "\n")
            } else {
                try printOut(infos.map(InfoCommand.text).joined(separator: "\n"))
            }
        }
    }

    // MARK: For people

    static func text(_ info: ImageInfo) -> String {
        var lines = [
            "image: \(info.path)", "file format: \(info.format.rawValue)",
            "virtual size: \(humanSize(info.virtualSize)) (\(info.virtualSize) bytes)",
            "disk size: \(humanSize(info.actualSize))",
        ]
        if let qcow2 = info.qcow2 { lines += self.lines(qcow2) }
        return lines.joined(separator: "\n") + "\n"
    }

    private static func lines(_ qcow2: ImageInfo.QCOW2) -> [String] {
        var lines = ["cluster size: \(qcow2.clusterSize)"]
        if let name = qcow2.backingFile {
            lines.append("backing file: \(name) (\(qcow2.backingFormat ?? "no format named"))")
        }
        if let name = qcow2.dataFile { lines.append("data file: \(name)\(qcow2.isDataFileRaw ? " (raw)" : "")") }
        lines.append("compat: \(qcow2.version == 2 ? "0.10" : "1.1")")
        lines.append("compression type: \(qcow2.compression.name)")
        lines.append("refcount bits: \(qcow2.refcountBits)\(qcow2.hasLazyRefcounts ? ", lazy" : "")")
        if qcow2.isDirty { lines.append("dirty: it was not closed in order, or is in use") }
        if qcow2.isCorrupt { lines.append("corrupt: repair it with martlet image check --repair all") }
        for bitmap in qcow2.bitmaps {
            lines.append(
                "bitmap: \(bitmap.name), granularity \(bitmap.granularity)\(bitmap.isInUse ? ", in use" : "")"
                    + (bitmap.isAutomatic ? ", follows writes" : ""))
        }
        lines += qcow2.snapshots.map { "snapshot: \($0.id) \($0.name), \(SnapshotCommand.date($0))" }
        return lines
    }

    /// As 1.5 GiB; whole units where it is one.
    static func humanSize(_ bytes: UInt64) -> String {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
        var unit = 0
        var value = Double(bytes)
        while value >= 1024, unit < units.count - 1 {
            value /= 1024
            unit += 1
        }
        let tenths = Int((value * 10).rounded())
        return (tenths.isMultiple(of: 10) ? "\(tenths / 10)" : "\(tenths / 10).\(tenths % 10)") + " \(units[unit])"
    }

    // MARK: For programs

    static func json(_ info: ImageInfo) -> JSONText {
        var members: [(String, JSONText)] = [
            ("virtual-size", .number(info.virtualSize)), ("filename", .string(info.path)),
            ("format", .string(info.format.rawValue)), ("actual-size", .number(info.actualSize)),
            ("dirty-flag", .bool(info.qcow2?.isDirty ?? false)),
        ]
        guard let qcow2 = info.qcow2 else { return .object(members) }
        members.append(("cluster-size", .number(qcow2.clusterSize)))
        if let name = qcow2.backingFile {
            members.append(("backing-filename", .string(name)))
            members.append(("full-backing-filename", .string(DiskImage.resolve(name, besides: info.path))))
            if let format = qcow2.backingFormat { members.append(("backing-filename-format", .string(format))) }
        }
        if !qcow2.snapshots.isEmpty { members.append(("snapshots", .array(qcow2.snapshots.map(snapshot)))) }
        members.append(("format-specific", .object([("type", .string("qcow2")), ("data", specific(qcow2))])))
        return .object(members)
    }

    private static func specific(_ qcow2: ImageInfo.QCOW2) -> JSONText {
        var data: [(String, JSONText)] = [
            ("compat", .string(qcow2.version == 2 ? "0.10" : "1.1")),
            ("compression-type", .string(qcow2.compression.name)),
            ("refcount-bits", .number(UInt64(qcow2.refcountBits))),
        ]
        guard qcow2.version >= 3 else { return .object(data) }
        data += [
            ("lazy-refcounts", .bool(qcow2.hasLazyRefcounts)), ("corrupt", .bool(qcow2.isCorrupt)),
            ("extended-l2", .bool(false)),
        ]
        if let name = qcow2.dataFile {
            data += [("data-file", .string(name)), ("data-file-raw", .bool(qcow2.isDataFileRaw))]
        }
        if !qcow2.bitmaps.isEmpty {
            data.append(("bitmaps", .array(qcow2.bitmaps.map(bitmap))))
        }
        return .object(data)
    }

    private static func bitmap(_ bitmap: ImageInfo.Bitmap) -> JSONText {
        let flags = [(bitmap.isInUse, "in-use"), (bitmap.isAutomatic, "auto")].filter(\.0).map { JSONText.string($0.1) }
        return .object([
            ("flags", .array(flags)), ("name", .string(bitmap.name)), ("granularity", .number(bitmap.granularity)),
        ])
    }

    static func snapshot(_ snapshot: SnapshotInfo) -> JSONText {
        .object([
            ("id", .string(snapshot.id)), ("name", .string(snapshot.name)),
            ("vm-state-size", .number(snapshot.stateSize)),
            ("date-sec", .number(UInt64(snapshot.secondsSinceEpoch))),
            ("date-nsec", .number(UInt64(snapshot.nanoseconds))),
            ("vm-clock-sec", .number(snapshot.guestNanoseconds / 1_000_000_000)),
            ("vm-clock-nsec", .number(snapshot.guestNanoseconds % 1_000_000_000)),
        ])
    }
}
