internal import ArgumentParser
internal import Disk
internal import Host
internal import VMM
internal import Virtio

/// `--disk FILE[,KEY=VALUE…]`.
struct DiskOption: Equatable {
    var path: String
    var isReadOnly = false
    /// Nil: qcow2 where the name ends so, else raw.
    var format: DiskFormat?
    var options = BlockConfigurationOptions()

    static func parse(_ text: String) throws -> DiskOption {
        // A comma that is written twice belongs to the name.
        var parts = [""]
        var characters = text[...]
        while let character = characters.popFirst() {
            if character != "," {
                parts[parts.count - 1].append(character)
            } else if characters.first == "," {
                characters.removeFirst()
                parts[parts.count - 1].append(character)
            } else {
                parts.append("")
            }
        }
        guard let path = parts.first, !path.isEmpty else {
            throw ValidationError("It begins with a file's name: disk.raw,readonly.")
        }
        var disk = DiskOption(path: path)
        for part in parts.dropFirst() { try disk.set(part) }
        let limits = disk.options.limits
        if limits.burst != nil, limits.bandwidth == nil { throw ValidationError("burst= needs bandwidth=.") }
        if limits.operationsBurst != nil, limits.operations == nil {
            throw ValidationError("operations-burst= needs operations=.")
        }
        return disk
    }

    private mutating func set(_ part: String) throws {
        let pair = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        let value = pair.count == 2 ? pair[1] : nil
        switch (pair[0], value) {
        case ("readonly", nil): isReadOnly = true
        case ("format", let value?):
            guard let format = DiskFormat(rawValue: value) else {
                throw ValidationError("The formats are: raw, qcow2.")
            }
            self.format = format
        case ("serial", let value?): options.serial = try Self.serial(value)
        case ("queues", let value?):
            guard let count = Int(value), (1...16).contains(count) else {
                throw ValidationError("queues must be 1 to 16.")
            }
            options.queueCount = count
        case ("cache", let value?):
            guard let cache = BlockConfigurationOptions.Cache(rawValue: value) else {
                throw ValidationError("The cache modes are: writeback, writethrough, none, unsafe.")
            }
            options.cache = cache
        case ("on-error", let value?):
            guard let action = BlockConfigurationOptions.ErrorAction(rawValue: value) else {
                let names = BlockConfigurationOptions.ErrorAction.allCases.map(\.rawValue)
                throw ValidationError("on-error must be \(names.joined(separator: ", ")).")
            }
            options.onError = action
        case ("aio", let value?):
            guard let transfers = BlockConfigurationOptions.Transfers(rawValue: value) else {
                throw ValidationError("aio must be io_uring or threads.")
            }
            options.transfers = transfers
        case (let key, let value?) where TrafficLimits.keys.contains(String(key)):
            do throws(TrafficLimitError) {
                _ = try options.limits.set(key[...], to: value[...])
            } catch {
                throw ValidationError(error.description)
            }
        default:
            throw ValidationError(
                "A disk has no '\(part)'; it has readonly, format=, serial=, queues=, cache=, aio=, on-error=, "
                    + "bandwidth=, operations=, burst= and operations-burst=.")
        }
    }

    private static func serial(_ text: String) throws -> String {
        let isPlain = text.utf8.allSatisfy { (0x21...0x7E).contains($0) }
        guard isPlain, (1...BlockConfigurationOptions.serialLimit).contains(text.utf8.count) else {
            throw ValidationError(
                "serial must be 1 to \(BlockConfigurationOptions.serialLimit) printable characters without spaces.")
        }
        return text
    }

    /// Opens the image, which stays open and locked for all restarts of the machine.
    ///
    /// - Parameter directory: where to put what the machine writes, to be thrown away; nil: into the image.
    func open(throwawayIn directory: String? = nil) throws(MachineError) -> DeviceConfiguration {
        if let directory, !isReadOnly { return try openForThrowaway(directory) }
        do throws(DiskError) {
            var how = DiskImage.Options(isWritable: !isReadOnly)
            if options.cache == .none { how.cache = .none }
            let image = try DiskImage.open(path, try imageFormat(), how)
            guard image.size >= 512 else {
                throw DiskError(
                    .invalid, "it is smaller than a sector of 512 bytes. Make it larger: truncate -s 1G \(path)")
            }
            return .disk(ImageDisk(image), options)
        } catch {
            let hint =
                switch error.kind {
                case .inUse: " End the other one, or give it to both as readonly."
                case .host where !isReadOnly: " A disk that may only be read needs ,readonly."
                default: ""
                }
            throw MachineError("Cannot use the disk \(path): \(error).\(hint)")
        }
    }

    /// Nothing is guessed by what is in the file: the guest of a raw image may write what looks like another format.
    func imageFormat() throws(DiskError) -> DiskFormat {
        if let format { return format }
        if path.hasSuffix(".qcow2") { return .qcow2 }
        guard try DiskImage.recognize(path) == nil else {
            throw DiskError(
                .wrongFormat, "it looks like a qcow2 image. Say what it is: \(path),format=qcow2 or format=raw")
        }
        return .raw
    }
}
