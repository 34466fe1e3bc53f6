internal import ArgumentParser
internal import Disk
internal import Glibc
internal import Host

/// `martlet image snapshot`: snapshots inside of a qcow2 image.
struct SnapshotCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "snapshot",
        abstract: "Lists, makes, applies and deletes snapshots inside of a qcow2 image.",
        subcommands: [List.self, Create.self, Apply.self, Delete.self])

    static func date(_ snapshot: SnapshotInfo) -> String {
        var seconds = time_t(snapshot.secondsSinceEpoch)
        var parts = tm()
        gmtime_r(&seconds, &parts)
        func two(_ number: Int32) -> String { number < 10 ? "0\(number)" : "\(number)" }
        return "\(parts.tm_year + 1900)-\(two(parts.tm_mon + 1))-\(two(parts.tm_mday)) "
            + "\(two(parts.tm_hour)):\(two(parts.tm_min)):\(two(parts.tm_sec)) UTC"
    }

    private static func change(_ file: String, _ body: (QCOW2Disk) throws(DiskError) -> Void) throws {
        try reportingDiskErrors { () throws(DiskError) in
            // Nothing is read of what is behind the image.
            var options = DiskImage.Options(isWritable: true)
            options.backing = .ignored
            let disk = try DiskImage.openQCOW2(file, options)
            try body(disk)
            try disk.close()
        }
    }

    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Lists them.")

        @Flag(help: "For programs: JSON with the names that qemu-img uses.")
        var json = false

        @Argument(help: "The image.")
        var file: String

        func run() throws {
            try reportingDiskErrors { () throws(DiskError) in
                let snapshots = try ImageInfo(file, .qcow2, sharing: .forced).qcow2?.snapshots ?? []
                if json { return try printOut(JSONText.array(snapshots.map(InfoCommand.snapshot)).text() + "\n") }
                let lines = snapshots.map {
                    "\($0.id)\t\($0.name)\t\(InfoCommand.humanSize($0.diskSize))\t\(SnapshotCommand.date($0))\n"
                }
                try printOut(lines.joined())
            }
        }
    }

    struct Create: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Keeps what the disk holds now.")

        @Argument(help: "The image.")
        var file: String

        @Argument(help: "The new snapshot's name.")
        var name: String

        func run() throws {
            try SnapshotCommand.change(file) { disk throws(DiskError) in
                try disk.createSnapshot(name, time: HostClock.realtimeNanoseconds)
            }
        }
    }

    struct Apply: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Makes the disk what it was then; what it is now is lost.")

        @Argument(help: "The image.")
        var file: String

        @Argument(help: "The snapshot's name or number.")
        var name: String

        func run() throws {
            try SnapshotCommand.change(file) { disk throws(DiskError) in try disk.applySnapshot(name) }
        }
    }

    struct Delete: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Deletes one.")

        @Argument(help: "The image.")
        var file: String

        @Argument(help: "The snapshot's name or number.")
        var name: String

        func run() throws {
            try SnapshotCommand.change(file) { disk throws(DiskError) in try disk.deleteSnapshot(name) }
        }
    }
}
