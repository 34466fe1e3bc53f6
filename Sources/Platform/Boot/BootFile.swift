public import X86

/// Why a boot file could not be read, in the host's words.
public struct BootFileError: Error, Equatable, Sendable {
    public var reason: String

    public init(_ reason: String) {
        self.reason = reason
    }
}

/// A kernel or a module as the loaders see it: bytes at offsets, wherever they come from.
public protocol BootFile: Sendable {
    /// For messages, and for multiboot's command line.
    var name: String { get }
    var size: UInt64 { get }
    /// Exactly `count` bytes from `offset` on, or an error.
    func read(count: Int, at offset: UInt64) throws(BootFileError) -> [UInt8]
}

/// A file that is in memory already.
public struct BootFileBytes: BootFile {
    public let name: String
    private let bytes: [UInt8]

    public init(name: String, _ bytes: [UInt8]) {
        self.name = name
        self.bytes = bytes
    }

    public var size: UInt64 { UInt64(bytes.count) }

    public func read(count: Int, at offset: UInt64) throws(BootFileError) -> [UInt8] {
        guard count >= 0, offset <= size, UInt64(count) <= size - offset else {
            throw BootFileError("it ends before byte \(offset &+ UInt64(clamping: count))")
        }
        return Array(bytes[Int(offset)..<Int(offset) + count])
    }
}

/// A file that the loader puts next to the kernel: Linux's initrd, or one of a multiboot kernel's modules.
public struct BootModule: Sendable {
    public var file: any BootFile
    public var arguments: String

    public init(file: any BootFile, arguments: String = "") {
        self.file = file
        self.arguments = arguments
    }

    /// "file args,file2 args2" as multiboot users write it (QEMU's -initrd): a doubled comma is a comma of a name.
    public static func split(_ list: String) -> [(path: String, arguments: String)] {
        var items: [String] = [""]
        var isAfterComma = false
        for character in list {
            if character == ",", !isAfterComma {
                isAfterComma = true
                continue
            }
            if isAfterComma, character != "," { items.append("") }
            isAfterComma = false
            items[items.count - 1].append(character)
        }
        return items.filter { !$0.isEmpty }.map { item in
            let parts = item.split(separator: " ", maxSplits: 1, omittingEmptySubsequences: false)
            return (String(parts[0]), parts.count > 1 ? String(parts[1]) : "")
        }
    }
}

/// What to boot, and on which machine.
public struct BootRequest: Sendable {
    public var kernel: any BootFile
    public var modules: [BootModule]
    public var commandLine: String
    public var layout: PhysicalMemoryMap
    /// Where the ACPI tables begin, for the protocols that can say so.
    public var rsdp: GuestPhysicalAddress?

    public init(
        kernel: any BootFile, modules: [BootModule] = [], commandLine: String = "", layout: PhysicalMemoryMap,
        rsdp: GuestPhysicalAddress? = nil
    ) {
        self.kernel = kernel
        self.modules = modules
        self.commandLine = commandLine
        self.layout = layout
        self.rsdp = rsdp
    }
}
