internal import ArgumentParser
internal import SoftKVM
internal import VMM

/// `--accel NAME`.
enum AcceleratorOption {
    static func parse(_ text: String) throws -> Accelerator {
        guard let accelerator = Accelerator(rawValue: text) else {
            throw ValidationError("The engines are: auto, kvm, soft.")
        }
        return accelerator
    }
}

/// `--engine NAME`.
enum SoftwareEngineOption {
    static func parse(_ text: String) throws -> SoftwareEngine {
        guard let engine = SoftwareEngine(rawValue: text) else {
            throw ValidationError("The software engine's ways are: interpreter, translator, exact, lockstep.")
        }
        return engine
    }
}

/// `--cpu MODEL[,+FEATURE,-FEATURE…]`, or `--cpu help`.
enum ProcessorOption: Equatable {
    case model(CPUModel)
    case help

    var model: CPUModel {
        if case .model(let model) = self { return model }
        return CPUModel()
    }

    static func parse(_ text: String) throws -> ProcessorOption {
        if text == "help" { return .help }
        do {
            return .model(try CPUModel(text))
        } catch {
            throw ValidationError(error.description)
        }
    }
}

/// An amount of memory as people write it: 512M, 2G, 1048576K, or bytes.
struct MemorySize: Equatable {
    var bytes: UInt64

    static func parse(_ text: String) throws -> MemorySize {
        let digits = text.prefix { $0.isASCII && $0.isNumber }
        let shift: UInt64? =
            switch text.dropFirst(digits.count).uppercased() {
            case "", "B": 0
            case "K", "KB", "KIB": 10
            case "M", "MB", "MIB": 20
            case "G", "GB", "GIB": 30
            case "T", "TB", "TIB": 40
            default: nil
            }
        guard let shift, let number = UInt64(digits) else {
            throw ValidationError("Write it as 512M or 2G.")
        }
        let (bytes, overflow) = number.multipliedReportingOverflow(by: 1 << shift)
        guard !overflow else { throw ValidationError("That is more than any host has.") }
        guard bytes >= 2 << 20 else {
            let hint = shift == 0 && number > 0 ? "; for megabytes write \(number)M" : ""
            throw ValidationError("A machine needs at least 2M\(hint).")
        }
        guard bytes.isMultiple(of: 4096) else { throw ValidationError("It must be a multiple of 4K.") }
        return MemorySize(bytes: bytes)
    }
}

/// A time span as people write it: 30s, 5m, 1h, 500ms, or seconds.
enum TimeSpan {
    static func parse(_ text: String) throws -> Duration {
        let digits = text.prefix { $0.isASCII && $0.isNumber }
        let milliseconds: UInt64? =
            switch text.dropFirst(digits.count).lowercased() {
            case "", "s": 1000
            case "ms": 1
            case "m", "min": 60_000
            case "h": 3_600_000
            default: nil
            }
        guard let milliseconds, let number = UInt64(digits), number > 0 else {
            throw ValidationError("Write it as 30s, 5m or 1h.")
        }
        let (total, overflow) = number.multipliedReportingOverflow(by: milliseconds)
        // Ten years: far from what the clock's nanoseconds can hold.
        guard !overflow, total <= 315_360_000_000 else {
            throw ValidationError("That is too long; leave the option out.")
        }
        return .milliseconds(Int64(total))
    }
}

/// `--device NAME[,KEY=VALUE…]`.
enum DeviceOption: Equatable {
    case debugExit(DebugExitConfiguration)
    case entropy

    static func parse(_ text: String) throws -> DeviceOption {
        let parts = text.split(separator: ",", omittingEmptySubsequences: false)
        switch parts.first {
        case "isa-debug-exit": return .debugExit(try debugExit(parts.dropFirst()))
        case "virtio-rng":
            if let extra = parts.dropFirst().first { throw ValidationError("virtio-rng has no '\(extra)'.") }
            return .entropy
        default:
            throw ValidationError(
                "The devices that can be added are: isa-debug-exit[,iobase=0xf4,iosize=4], virtio-rng.")
        }
    }

    private static func debugExit(_ parts: ArraySlice<Substring>) throws -> DebugExitConfiguration {
        var result = DebugExitConfiguration()
        for part in parts {
            let pair = part.split(separator: "=", maxSplits: 1).map(String.init)
            guard pair.count == 2, let value = number(pair[1]) else {
                throw ValidationError("'\(part)' is not KEY=NUMBER; write iobase=0xf4 or iosize=4.")
            }
            switch pair[0] {
            case "iobase": result.base = value
            case "iosize" where value == 1 || value == 2 || value == 4: result.size = value
            case "iosize": throw ValidationError("iosize must be 1, 2 or 4.")
            default: throw ValidationError("isa-debug-exit has no '\(pair[0])'; it has iobase and iosize.")
            }
        }
        guard UInt32(result.base) + UInt32(result.size) <= 0x1_0000 else {
            throw ValidationError("iobase and iosize go past the last port, 0xffff.")
        }
        return result
    }

    private static func number(_ text: String) -> UInt16? {
        text.lowercased().hasPrefix("0x") ? UInt16(text.dropFirst(2), radix: 16) : UInt16(text)
    }
}
