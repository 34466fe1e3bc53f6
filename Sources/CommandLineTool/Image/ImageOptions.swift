internal import ArgumentParser
internal import Disk

/// A disk's size as people write it: 20G, 512M, 1048576.
struct DiskSize: Equatable {
    var bytes: UInt64

    static func parse(_ text: String) throws -> DiskSize {
        guard let bytes = bytes(text) else { throw ValidationError("Write it as 20G, 512M or in bytes.") }
        return DiskSize(bytes: bytes)
    }

    static func bytes(_ text: String) -> UInt64? {
        let digits = text.prefix { $0.isASCII && $0.isNumber }
        let shift: UInt64? =
            switch text.dropFirst(digits.count).uppercased() {
            case "", "B": 0
            case "K", "KIB": 10
            case "M", "MIB": 20
            case "G", "GIB": 30
            case "T", "TIB": 40
            case "P", "PIB": 50
            case "E", "EIB": 60
            default: nil
            }
        guard let shift, let number = UInt64(digits) else { return nil }
        let (bytes, overflow) = number.multipliedReportingOverflow(by: 1 << shift)
        return overflow ? nil : bytes
    }
}

/// A size, or by how much it changes: 20G, +10G, -512M.
struct DiskSizeChange: Equatable {
    enum Direction { case to, more, less }

    var direction: Direction
    var bytes: UInt64

    static func parse(_ text: String) throws -> DiskSizeChange {
        let direction: Direction = text.hasPrefix("+") ? .more : text.hasPrefix("-") ? .less : .to
        guard let bytes = DiskSize.bytes(direction == .to ? text : String(text.dropFirst())) else {
            throw ValidationError("Write the size as 20G, or by how much it changes as +10G or -512M.")
        }
        return DiskSizeChange(direction: direction, bytes: bytes)
    }

    /// The new size; nil where it cannot be.
    func applied(to size: UInt64) -> UInt64? {
        switch direction {
        case .to: return bytes
        case .more:
            let (sum, overflow) = size.addingReportingOverflow(bytes)
            return overflow ? nil : sum
        case .less: return bytes <= size ? size - bytes : nil
        }
    }
}

/// `--format`, `--from`, `--to`.
enum FormatOption {
    static func parse(_ text: String) throws -> DiskFormat {
        guard let format = DiskFormat(rawValue: text) else { throw ValidationError("The formats are: raw, qcow2.") }
        return format
    }

    /// The format that was said, or what the file's header says. An image whose format nobody vouches for may not
    /// refer to other files.
    static func resolve(
        _ path: String, _ said: DiskFormat?, option: String
    ) throws(DiskError) -> (format: DiskFormat, backing: DiskImage.Backing) {
        if let said { return (said, .asNamed) }
        guard let format = try DiskImage.recognize(path) else {
            throw DiskError(
                .wrongFormat, "\(path) has no qcow2 header, and what is raw is never guessed. Say \(option) raw")
        }
        return (format, .refused)
    }
}

/// `--option KEY=VALUE,…`: how a qcow2 image is made. The keys are qemu-img's.
struct CreationOptions: Equatable {
    var qcow2 = QCOW2Options()
    var preallocation: Preallocation?
    /// Whether any key was given that only qcow2 has.
    var isForQCOW2 = false

    private static let keys = """
        cluster_size, compat, refcount_bits, lazy_refcounts, compression_type, preallocation, data_file, data_file_raw
        """

    static func parse(_ texts: [String]) throws -> CreationOptions {
        var result = CreationOptions()
        for text in texts {
            for part in text.split(separator: ",") {
                let pair = part.split(separator: "=", maxSplits: 1).map(String.init)
                guard pair.count == 2 else {
                    throw ValidationError("'\(part)' is not KEY=VALUE; the keys are: \(keys)")
                }
                try result.set(pair[0], pair[1])
            }
        }
        return result
    }

    private mutating func set(_ key: String, _ value: String) throws {
        func wrong(_ known: String) -> ValidationError { ValidationError("\(key)=\(value): it must be \(known)") }
        func isOn() throws -> Bool {
            switch value {
            case "on", "true", "yes": return true
            case "off", "false", "no": return false
            default: throw wrong("on or off")
            }
        }
        if key != "preallocation" { isForQCOW2 = true }
        switch key {
        case "cluster_size":
            guard let bytes = DiskSize.bytes(value) else { throw wrong("a size such as 64k") }
            qcow2.clusterSize = bytes
        case "compat":
            guard ["0.10", "1.1", "v2", "v3"].contains(value) else {
                throw wrong("0.10 (version 2) or 1.1 (version 3)")
            }
            qcow2.version = value == "0.10" || value == "v2" ? 2 : 3
        case "refcount_bits":
            guard let bits = UInt32(value) else { throw wrong("1, 2, 4, 8, 16, 32 or 64") }
            qcow2.refcountBits = bits
        case "lazy_refcounts": qcow2.hasLazyRefcounts = try isOn()
        case "compression_type":
            guard let kind = CompressionKind.allCases.first(where: { $0.name == value }) else {
                throw wrong("zlib or zstd")
            }
            qcow2.compression = kind
        case "preallocation":
            guard let mode = Preallocation(rawValue: value) else { throw wrong("off, metadata, falloc or full") }
            preallocation = mode
        case "data_file": qcow2.dataFile = value
        case "data_file_raw": qcow2.isDataFileRaw = try isOn()
        case "extended_l2":
            if try isOn() { throw ValidationError("extended_l2 (subclusters) is not supported; leave it out") }
        default: throw ValidationError("There is no option '\(key)'; there are: \(CreationOptions.keys)")
        }
    }
}
