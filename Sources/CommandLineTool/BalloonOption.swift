internal import ArgumentParser
internal import VMM
internal import Virtio

/// `--balloon KEY[,KEY…]`.
struct BalloonOption: Equatable {
    /// Pages of 4 KiB.
    var targetPages: UInt32 = 0
    var options = BalloonOptions(deflatesOnOOM: false, reportsFreePages: false)

    private static let keys = "target=SIZE, deflate-on-oom and free-page-reporting"

    static func parse(_ text: String) throws -> BalloonOption {
        var result = BalloonOption()
        for part in text.split(separator: ",", omittingEmptySubsequences: false) {
            switch part {
            case "deflate-on-oom": result.options.deflatesOnOOM = true
            case "free-page-reporting": result.options.reportsFreePages = true
            default:
                guard part.hasPrefix("target=") else {
                    throw ValidationError("A balloon has no '\(part)'; it has \(keys).")
                }
                result.targetPages = try pages(part.dropFirst("target=".count))
            }
        }
        return result
    }

    private static func pages(_ text: Substring) throws -> UInt32 {
        if text == "0" { return 0 }
        let bytes = try MemorySize.parse(String(text)).bytes
        guard let pages = UInt32(exactly: bytes / 4096) else {
            throw ValidationError("The balloon's target is too large.")
        }
        return pages
    }

    /// What a guest said last of its memory, in one line.
    static func figures(_ devices: [DeviceConfiguration]) -> [String] {
        devices.compactMap { device in
            guard case .balloon(let control) = device else { return nil }
            let figures = control.figures
            func mebibytes(_ tag: BalloonStatistics.Tag, _ text: String) -> String? {
                figures.statistics.values[tag].map { "\($0 >> 20) MiB \(text)" }
            }
            let memory = [
                mebibytes(.total, "of memory"), mebibytes(.free, "free"), mebibytes(.available, "available"),
                mebibytes(.caches, "in caches"),
            ].compactMap(\.self)
            return "balloon: \(figures.actualPages >> 8) of \(figures.targetPages >> 8) MiB taken, "
                + "\(figures.reportedBytes >> 20) MiB of free pages returned"
                + (memory.isEmpty ? "" : "; the guest has " + memory.joined(separator: ", "))
        }
    }
}
