internal import ArgumentParser
internal import Disk

/// `martlet image check`.
struct CheckCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "check",
        abstract: "Looks for contradictions in a qcow2 image's tables, and repairs them.",
        discussion: "Ends with 0 when there is nothing (left), 2 when the image is corrupt, 3 when only space is lost.")

    @Option(
        help: ArgumentHelp("What to repair: leaks, all.", valueName: "what"),
        transform: { text in
            guard let repair = Repair(rawValue: text) else { throw ValidationError("It can repair: leaks, all.") }
            return repair
        })
    var repair: Repair?

    @Flag(help: "For programs: JSON with the names that qemu-img uses.")
    var json = false

    @Argument(help: "The image.")
    var file: String

    func run() throws {
        var status = ExitStatus.success
        try reportingDiskErrors { () throws(DiskError) in
            let disk = try DiskImage.openForCheck(file, isWritable: repair != nil)
            let report = try disk.check(repair: repair)
            try disk.close()
            try printOut(json ? jsonText(report) : text(report))
            status =
                report.corruptions > 0 ? ExitStatus(rawValue: 2) : report.leaks > 0 ? ExitStatus(rawValue: 3) : .success
        }
        if status != .success { throw status }
    }

    private func text(_ report: CheckReport) -> String {
        var lines = report.findings
        if report.corruptionsFixed + report.leaksFixed > 0 {
            lines.append("\(report.corruptionsFixed) errors and \(report.leaksFixed) leaked clusters were repaired.")
        }
        if report.isClean {
            lines.append("No errors were found on the image.")
        } else {
            lines.append("\(report.corruptions) errors and \(report.leaks) leaked clusters were found on the image.")
            lines.append("Repair it with: martlet image check --repair \(report.corruptions > 0 ? "all" : "leaks")")
        }
        if report.totalClusters > 0 {
            let allocated = report.allocatedClusters
            lines.append(
                "\(allocated)/\(report.totalClusters) = \(percent(allocated, report.totalClusters)) allocated, "
                    + "\(percent(report.fragmentedClusters, allocated)) fragmented, "
                    + "\(percent(report.compressedClusters, allocated)) compressed clusters")
        }
        lines.append("Image end offset: \(report.imageEndOffset)")
        return lines.joined(separator: "\n") + "\n"
    }

    private func percent(_ part: UInt64, _ whole: UInt64) -> String {
        guard whole > 0 else { return "0.00%" }
        let hundredths = UInt64((Double(part) / Double(whole) * 10000).rounded())
        let rest = hundredths % 100
        return "\(hundredths / 100).\(rest < 10 ? "0" : "")\(rest)%"
    }

    private func jsonText(_ report: CheckReport) -> String {
        var members: [(String, JSONText)] = [
            ("image-end-offset", .number(report.imageEndOffset)), ("total-clusters", .number(report.totalClusters)),
            ("allocated-clusters", .number(report.allocatedClusters)),
            ("fragmented-clusters", .number(report.fragmentedClusters)),
            ("compressed-clusters", .number(report.compressedClusters)), ("check-errors", .number(0)),
            ("filename", .string(file)), ("format", .string("qcow2")),
        ]
        let counts = [
            ("corruptions", report.corruptions), ("leaks", report.leaks),
            ("corruptions-fixed", report.corruptionsFixed), ("leaks-fixed", report.leaksFixed),
        ]
        for (name, count) in counts where count > 0 { members.append((name, .number(UInt64(count)))) }
        return JSONText.object(members).text() + "\n"
    }
}
