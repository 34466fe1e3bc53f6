/// What a kernel file is, by its first bytes.
public enum BootImageKind: Sendable, Equatable {
    case multiboot
    case linux
    case elf
}

/// Finds out what a kernel file is, and plans its boot.
public enum BootLoader {
    /// As much of a file as decides what it is: multiboot's header lies in the first 8 KiB (Multiboot 0.6.96 §3.1).
    static let windowSize = 8192

    /// For callers that treat `--initrd` by the kernel's kind.
    public static func detect(_ kernel: any BootFile) throws(BootError) -> BootImageKind {
        try kind(of: try window(kernel), kernel)
    }

    /// Reads headers, checks them and decides where everything goes. The file's contents are hostile.
    public static func plan(_ request: BootRequest) throws(BootError) -> BootPlan {
        let window = try window(request.kernel)
        switch try kind(of: window, request.kernel) {
        case .multiboot: return try MultibootLoader.plan(request, window: window)
        case .linux: return try LinuxLoader.plan(request, window: window)
        case .elf: return try ELFLoader.plan(request, window: window)
        }
    }

    private static func window(_ kernel: any BootFile) throws(BootError) -> [UInt8] {
        guard kernel.size > 0 else { throw .empty(kernel) }
        return try kernel.bootBytes(at: 0, count: Int(min(kernel.size, UInt64(windowSize))))
    }

    private static func kind(of window: [UInt8], _ kernel: any BootFile) throws(BootError) -> BootImageKind {
        if MultibootHeader(window) != nil { return .multiboot }
        if LinuxHeader.isPresent(window) { return .linux }
        if ELFImage.isPresent(window) { return .elf }
        throw .notAKernel(kernel)
    }
}
