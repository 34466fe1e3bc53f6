internal import X86

/// Linux bzImages by the 64-bit boot protocol (Documentation/arch/x86/boot.rst).
enum LinuxLoader {
    static func plan(_ request: BootRequest, window: [UInt8]) throws(BootError) -> BootPlan {
        let kernel = request.kernel
        let header = try LinuxHeader(window, kernel)
        try checkIsBootable(header, kernel)
        let payload = try payload(header, kernel)

        var planner = BootPlanner(request)
        let size = max(UInt64(header.initSize), payload.upperBound - payload.lowerBound)
        let load = try reserveKernel(header, size: size, &planner)
        planner.place(
            .file(kernel, offset: payload.lowerBound, count: payload.upperBound - payload.lowerBound), at: load)

        let commandLine = try planner.placeCommandLine(limit: Int(min(header.commandLineSize, 0xFFFF)))
        let initrd = try planner.placeInitrd(below: UInt64(header.initrdAddressMaximum) + 1)
        var parameters = LinuxBootParameters()
        parameters.copyHeader(header.bytes)
        parameters.describe(request, commandLine: commandLine, initrd: initrd)
        return try planner.longModePlan(parameters, entry: load + LinuxHeader.entry64)
    }

    private static func checkIsBootable(_ header: LinuxHeader, _ kernel: any BootFile) throws(BootError) {
        guard header.version >= LinuxHeader.minimumVersion else {
            throw .unsupported(
                kernel, why: "its boot protocol \(header.version >> 8).\(header.version & 0xFF) has no 64-bit entry",
                advice: "use Linux 3.8 or later")
        }
        guard header.loadFlags & LinuxHeader.loadedHigh != 0 else {
            throw .unsupported(kernel, why: "it is a zImage, which loads below 1 MiB", advice: "build a bzImage")
        }
        guard header.extendedLoadFlags & LinuxHeader.kernel64 != 0 else {
            throw .unsupported(kernel, why: "it is a 32-bit kernel", advice: "use an x86-64 kernel")
        }
    }

    /// The protected-mode part: everything behind the setup sectors.
    private static func payload(_ header: LinuxHeader, _ kernel: any BootFile) throws(BootError) -> Range<UInt64> {
        let needed = header.setupSize + UInt64(header.payloadParagraphs) * 16
        guard needed <= kernel.size else { throw .truncated(kernel, needed: needed, part: "compressed kernel") }
        guard kernel.size - header.setupSize > LinuxHeader.entry64 else {
            throw .truncated(kernel, needed: header.setupSize + LinuxHeader.entry64 + 1, part: "64-bit entry")
        }
        return header.setupSize..<kernel.size
    }

    /// At the preferred address; a relocatable kernel also wherever its alignment allows.
    private static func reserveKernel(
        _ header: LinuxHeader, size: UInt64, _ planner: inout BootPlanner
    ) throws(BootError) -> UInt64 {
        let kernel = planner.request.kernel
        if planner.reserve(base: header.preferredAddress, size: size) { return header.preferredAddress }
        let misfit = BootError.kernelDoesNotFit(
            kernel, base: header.preferredAddress, size: size, layout: planner.request.layout)
        guard header.isRelocatable else { throw misfit }
        let alignment = UInt64(header.kernelAlignment)
        guard alignment.nonzeroBitCount == 1 else {
            throw .invalidHeader(
                kernel, why: "its kernel_alignment \(BootError.hexadecimal(alignment)) is not a power of two")
        }
        guard let base = planner.allocate(size: size, alignment: max(alignment, 4096), in: planner.extendedMemory)
        else { throw misfit }
        return base
    }
}

/// boot_params, the "zero page" (Documentation/arch/x86/zero-page.rst).
struct LinuxBootParameters: Sendable {
    private enum Field {
        static let rsdp = 0x070
        static let e820Count = 0x1E8
        static let bootFlag = 0x1FE
        static let magic = 0x202
        static let version = 0x206
        static let loaderType = 0x210
        static let loadFlags = 0x211
        static let initrdAddress = 0x218
        static let initrdSize = 0x21C
        static let commandLine = 0x228
        static let initrdAddressMaximum = 0x22C
        static let kernelAlignment = 0x230
        static let commandLineSize = 0x238
        static let setupData = 0x250
        static let e820 = 0x2D0
    }

    /// A loader without an assigned number.
    private static let unknownLoader: UInt8 = 0xFF
    /// COMMAND_LINE_SIZE of x86, less its terminator: for kernels that come without a header.
    static let commandLineLimit = 2047

    private(set) var bytes = [UInt8](repeating: 0, count: 4096)

    mutating func copyHeader(_ header: [UInt8]) {
        bytes.replaceSubrange(LinuxHeader.start..<LinuxHeader.start + header.count, with: header)
    }

    /// For a vmlinux, which has no header of its own.
    mutating func makeHeader() {
        bytes.store(LinuxHeader.bootFlag, at: Field.bootFlag)
        bytes.store(LinuxHeader.magic, at: Field.magic)
        bytes.store(LinuxHeader.minimumVersion, at: Field.version)
        bytes.store(LinuxHeader.loadedHigh, at: Field.loadFlags)
        bytes.store(UInt32.max, at: Field.initrdAddressMaximum)
        bytes.store(UInt32(0x100_0000), at: Field.kernelAlignment)
        bytes.store(UInt32(Self.commandLineLimit), at: Field.commandLineSize)
    }

    mutating func describe(_ request: BootRequest, commandLine: UInt64, initrd: Range<UInt64>?) {
        bytes.store(Self.unknownLoader, at: Field.loaderType)
        bytes.store(UInt64(0), at: Field.setupData)
        bytes.store(request.rsdp?.rawValue ?? 0, at: Field.rsdp)
        bytes.store(UInt32(truncatingIfNeeded: commandLine), at: Field.commandLine)
        // All below 4 GiB: the planner places nothing above.
        bytes.store(UInt32(truncatingIfNeeded: initrd?.lowerBound ?? 0), at: Field.initrdAddress)
        bytes.store(
            UInt32(truncatingIfNeeded: initrd.map { $0.upperBound - $0.lowerBound } ?? 0), at: Field.initrdSize)
        let e820 = request.layout.e820
        bytes.store(UInt8(clamping: e820.count), at: Field.e820Count)
        for (index, entry) in e820.enumerated() {
            bytes.store(entry.base, at: Field.e820 + 20 * index)
            bytes.store(entry.size, at: Field.e820 + 20 * index + 8)
            bytes.store(entry.type.rawValue, at: Field.e820 + 20 * index + 16)
        }
    }
}

extension BootPlanner {
    /// Page tables, GDT and boot_params, and the registers of the 64-bit entry.
    mutating func longModePlan(_ parameters: LinuxBootParameters, entry: UInt64) throws(BootError) -> BootPlan {
        let parameterAddress = try placeStructure(parameters.bytes, alignment: 4096, "boot parameters")
        let gdt = try placeStructure(BootGDT.bytes, "segment descriptors")
        guard
            let tables = allocate(size: IdentityPageTables.size, alignment: 4096, in: Self.structures)
                ?? allocate(size: IdentityPageTables.size, alignment: 4096, in: extendedMemory)
        else { throw .kernelHasNoRoom(request.kernel, part: "page tables", size: IdentityPageTables.size) }
        place(.bytes(IdentityPageTables.bytes(at: tables)), at: tables)
        var state = BootState.longMode(.linux64, gdtBase: gdt, pageTables: tables)
        state.registers.rip = entry
        state.registers.rsi = parameterAddress
        return BootPlan(state: state, placements: placements)
    }
}

/// Four-level page tables that map the first 4 GiB onto themselves, in 2 MiB pages (SDM vol. 3A §4.5).
enum IdentityPageTables {
    /// PML4, PDPT, and four page directories.
    static let size: UInt64 = 6 * 4096
    private static let present: UInt64 = 1
    private static let writable: UInt64 = 2
    private static let largePage: UInt64 = 1 << 7

    static func bytes(at base: UInt64) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Int(size))
        bytes.store((base + 4096) | present | writable, at: 0)
        for gigabyte in 0..<4 {
            let directory = base + 8192 + UInt64(gigabyte) * 4096
            bytes.store(directory | present | writable, at: 4096 + 8 * gigabyte)
            for page in 0..<512 {
                let address = UInt64(gigabyte) << 30 | UInt64(page) << 21
                bytes.store(address | present | writable | largePage, at: 8192 + gigabyte * 4096 + 8 * page)
            }
        }
        return bytes
    }
}
