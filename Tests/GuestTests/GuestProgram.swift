import Host
import Testing

/// The state that the harness puts the processor into, as the program's name says.
enum ProcessorMode: String {
    case real16
    case protected32
    case long64
}

/// One of our own guests: Guests/NAME.S, built by scripts/build-guests into .build/guests/NAME.bin.
struct GuestProgram: CustomTestStringConvertible, Sendable {
    let name: String
    var hasIRQChip = false

    var mode: ProcessorMode? { ProcessorMode(rawValue: String(name.prefix { $0 != "-" })) }
    var testDescription: String { name }

    /// What runs on every KVM, even where it has only its instruction emulator.
    static let simple: [GuestProgram] = [
        GuestProgram(name: "real16-io"),
        GuestProgram(name: "real16-string"),
        GuestProgram(name: "real16-interrupts"),
        GuestProgram(name: "real16-segments"),
        GuestProgram(name: "real16-to-long64"),
        GuestProgram(name: "protected32-io"),
        GuestProgram(name: "protected32-exceptions"),
        GuestProgram(name: "protected32-limits"),
        GuestProgram(name: "protected32-pic", hasIRQChip: true),
        GuestProgram(name: "protected32-apic", hasIRQChip: true),
        GuestProgram(name: "protected32-ioapic", hasIRQChip: true),
        GuestProgram(name: "long64-io"),
        GuestProgram(name: "long64-string"),
        GuestProgram(name: "long64-exceptions"),
        GuestProgram(name: "long64-cpuid"),
        GuestProgram(name: "long64-paging"),
        GuestProgram(name: "long64-x2apic", hasIRQChip: true),
    ]

    /// What needs all of a processor (COMPLETE in Guests/guest.inc).
    static let complete: [GuestProgram] = [
        GuestProgram(name: "protected32-complete-exceptions"),
        GuestProgram(name: "protected32-paging"),
        GuestProgram(name: "protected32-complete-limits"),
        GuestProgram(name: "protected32-ring3"),
        GuestProgram(name: "protected32-injection"),
        GuestProgram(name: "protected32-complete-pic", hasIRQChip: true),
        GuestProgram(name: "protected32-complete-apic", hasIRQChip: true),
        GuestProgram(name: "protected32-complete-ioapic", hasIRQChip: true),
        GuestProgram(name: "long64-complete-exceptions"),
        GuestProgram(name: "long64-complete-paging"),
        GuestProgram(name: "long64-pcid"),
        GuestProgram(name: "long64-ring3"),
        GuestProgram(name: "long64-debug"),
        GuestProgram(name: "long64-complete-x2apic", hasIRQChip: true),
    ]

    static let all = simple + complete

    /// The package's directory, two above this file's.
    private static var root: String { #filePath.split(separator: "/").dropLast(3).map { "/" + $0 }.joined() }

    func image() throws -> [UInt8] {
        let path = "\(Self.root)/.build/guests/\(name).bin"
        do {
            return try RandomAccessFile(path: path).readAll(limit: 0x8000)
        } catch {
            throw MissingFile(description: "\(error); run scripts/build-guests first")
        }
    }

    /// What the run must come to, as text; nil where nothing is recorded yet.
    func expectation() throws -> String? {
        guard let file = try? RandomAccessFile(path: expectationPath) else { return nil }
        return String(decoding: try file.readAll(limit: 1 << 20), as: UTF8.self)
    }

    func record(_ text: String) throws {
        try FileDescriptor.open(expectationPath, .create).write(Array(text.utf8))
    }

    private var expectationPath: String { "\(Self.root)/Tests/GuestTests/Expected/\(name).txt" }
}

struct MissingFile: Error, CustomStringConvertible {
    var description: String
}
