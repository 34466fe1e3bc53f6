/// Why a kernel cannot be booted: what failed with its values, why, and what to do about it.
public struct BootError: Error, Equatable, Sendable, CustomStringConvertible {
    public enum Kind: Sendable, Equatable {
        case unreadable
        case empty
        case notAKernel
        case truncated
        /// A kernel, but not of a kind that can be entered here.
        case unsupported
        /// A header field with a value that makes no sense.
        case invalidHeader
        case kernelDoesNotFit
        case moduleDoesNotFit
        case commandLineTooLong
        case tooManyModules
    }

    public var kind: Kind
    public var what: String
    public var why: String
    public var advice: String

    init(_ kind: Kind, _ what: String, why: String, advice: String) {
        self.kind = kind
        self.what = what
        self.why = why
        self.advice = advice
    }

    public var description: String { "\(what): \(why); \(advice)" }
}

extension BootError {
    private static func cannotBoot(_ file: any BootFile) -> String { "Cannot boot \(file.name)" }

    static func unreadable(_ file: any BootFile, _ error: BootFileError) -> Self {
        Self(.unreadable, "Cannot read \(file.name)", why: error.reason, advice: "check the file")
    }

    static func empty(_ file: any BootFile) -> Self {
        Self(.empty, "Cannot load \(file.name)", why: "the file is empty", advice: "get it again, or choose another")
    }

    static func notAKernel(_ file: any BootFile) -> Self {
        Self(
            .notAKernel, cannotBoot(file),
            why: "its \(file.size) bytes begin like neither a Linux bzImage, nor an ELF file, nor a multiboot image",
            advice: "pass --kernel a bzImage (such as /boot/vmlinuz-*), an ELF vmlinux or a multiboot image")
    }

    static func truncated(_ file: any BootFile, needed: UInt64, part: String) -> Self {
        Self(
            .truncated, cannotBoot(file),
            why: "its \(part) reaches to byte \(needed), but the file has only \(file.size) bytes",
            advice: "copy or download it again")
    }

    static func unsupported(_ file: any BootFile, why: String, advice: String) -> Self {
        Self(.unsupported, cannotBoot(file), why: why, advice: advice)
    }

    static func invalidHeader(_ file: any BootFile, why: String) -> Self {
        Self(.invalidHeader, cannotBoot(file), why: why, advice: "the file is damaged; copy or download it again")
    }

    static func kernelDoesNotFit(_ file: any BootFile, base: UInt64, size: UInt64, layout: PhysicalMemoryMap) -> Self {
        Self(
            .kernelDoesNotFit, cannotBoot(file),
            why: "it needs \(size) bytes of RAM at \(hexadecimal(base)), and the guest has RAM from 0 to 0xa0000 and "
                + "from 0x100000 to \(hexadecimal(layout.lowEnd))",
            advice: "give the guest more memory (--memory)")
    }

    static func kernelHasNoRoom(_ file: any BootFile, part: String, size: UInt64) -> Self {
        Self(
            .kernelDoesNotFit, cannotBoot(file),
            why: "no \(size) bytes of RAM are left beside it for the \(part)",
            advice: "give the guest more memory (--memory)")
    }

    static func moduleDoesNotFit(_ file: any BootFile, free: UInt64, layout: PhysicalMemoryMap) -> Self {
        Self(
            .moduleDoesNotFit, "Cannot load \(file.name)",
            why: "it has \(file.size) bytes, and of the guest's \(layout.memorySize) bytes of memory at most \(free) "
                + "in one piece are free for it beside the kernel",
            advice: "give the guest more memory (--memory)")
    }

    static func commandLineTooLong(_ file: any BootFile, count: Int, limit: Int) -> Self {
        Self(
            .commandLineTooLong, cannotBoot(file),
            why: "the kernel command line has \(count) bytes and this kernel takes at most \(limit)",
            advice: "shorten --append")
    }

    static func tooManyModules(_ file: any BootFile, count: Int) -> Self {
        Self(
            .tooManyModules, cannotBoot(file), why: "Linux takes one initrd and \(count) were given",
            advice: "concatenate them into one file")
    }

    static func hexadecimal(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
}
