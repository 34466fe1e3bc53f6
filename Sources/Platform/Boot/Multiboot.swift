/// A multiboot header (Multiboot Specification 0.6.96 §3.1).
struct MultibootHeader: Equatable, Sendable {
    static let magic: UInt32 = 0x1BAD_B002
    /// Bit 0 asks for modules on page boundaries, bit 1 for memory information, bit 2 for a video mode. The first two
    /// always hold; a video mode is a wish that there is no display for.
    static let understoodRequirements: UInt32 = 0x0007
    static let requirements: UInt32 = 0xFFFF
    static let hasAddresses: UInt32 = 1 << 16

    /// Where in the file.
    var offset: Int
    var flags: UInt32
    var headerAddress: UInt32 = 0
    var loadAddress: UInt32 = 0
    var loadEnd: UInt32 = 0
    var bssEnd: UInt32 = 0
    var entry: UInt32 = 0

    /// The first aligned header in `window` with a right checksum.
    init?(_ window: [UInt8]) {
        for offset in stride(from: 0, through: window.count - 12, by: 4)
        where window[offset] == UInt8(truncatingIfNeeded: Self.magic) {
            guard window.load(UInt32.self, at: offset) == Self.magic,
                let flags: UInt32 = window.load(at: offset + 4), let checksum: UInt32 = window.load(at: offset + 8),
                Self.magic &+ flags &+ checksum == 0
            else { continue }
            self.offset = offset
            self.flags = flags
            guard flags & Self.hasAddresses != 0 else { return }
            headerAddress = window.load(at: offset + 12) ?? 0
            loadAddress = window.load(at: offset + 16) ?? 0
            loadEnd = window.load(at: offset + 20) ?? 0
            bssEnd = window.load(at: offset + 24) ?? 0
            entry = window.load(at: offset + 28) ?? 0
            return
        }
        return nil
    }
}

/// Multiboot version 1 kernels.
enum MultibootLoader {
    /// What EAX holds at entry (§3.2).
    private static let bootMagic: UInt64 = 0x2BAD_B002

    static func plan(_ request: BootRequest, window: [UInt8]) throws(BootError) -> BootPlan {
        let kernel = request.kernel
        guard let header = MultibootHeader(window) else { throw .notAKernel(kernel) }
        let unknown = header.flags & MultibootHeader.requirements & ~MultibootHeader.understoodRequirements
        guard unknown == 0 else {
            throw .unsupported(
                kernel,
                why: "its multiboot header requires features \(BootError.hexadecimal(UInt64(unknown))) that version 1 "
                    + "does not have",
                advice: "clear those flag bits in the image")
        }
        var planner = BootPlanner(request)
        let entry =
            header.flags & MultibootHeader.hasAddresses != 0
            ? try placeFlat(header, &planner) : try placeELF(&planner, window: window)
        let info = try MultibootInformation.place(&planner)
        let gdt = try planner.placeStructure(BootGDT.bytes, "segment descriptors")
        var state = BootState.protectedMode(.multiboot, gdtBase: gdt)
        state.registers.rax = bootMagic
        state.registers.rbx = info
        state.registers.rip = entry
        return BootPlan(state: state, placements: planner.placements)
    }

    private static func placeELF(_ planner: inout BootPlanner, window: [UInt8]) throws(BootError) -> UInt64 {
        let kernel = planner.request.kernel
        guard ELFImage.isPresent(window) else {
            throw .unsupported(
                kernel, why: "its multiboot header has no load addresses (flag bit 16) and the file is not ELF",
                advice: "link it as a 32-bit ELF file")
        }
        let image = try ELFImage(kernel, window: window)
        guard !image.is64Bit else {
            throw .unsupported(
                kernel, why: "it is a 64-bit ELF file, and multiboot enters in 32-bit mode",
                advice: "convert it with: objcopy -O elf32-i386 \(kernel.name) \(kernel.name).elf32")
        }
        try image.place(&planner)
        let entry = image.physicalEntry
        guard image.contains(physicalAddress: entry) else {
            throw .invalidHeader(
                kernel, why: "its entry \(BootError.hexadecimal(image.entry)) lies in none of its segments")
        }
        return entry
    }

    /// The "a.out kludge" (§3.1.3): addresses instead of segments.
    private static func placeFlat(_ header: MultibootHeader, _ planner: inout BootPlanner) throws(BootError) -> UInt64 {
        let kernel = planner.request.kernel
        let load = UInt64(header.loadAddress)
        let lead = UInt64(header.headerAddress) &- load
        guard header.headerAddress >= header.loadAddress, lead <= UInt64(header.offset) else {
            throw .invalidHeader(
                kernel,
                why: "its multiboot header is at \(header.offset) in the file, but \(header.headerAddress) in memory "
                    + "where the image begins at \(header.loadAddress)")
        }
        let fileOffset = UInt64(header.offset) - lead
        let loadEnd = header.loadEnd == 0 ? load + (kernel.size - fileOffset) : UInt64(header.loadEnd)
        guard loadEnd > load else {
            throw .invalidHeader(kernel, why: "its multiboot load_end_addr is not above its load_addr")
        }
        let size = loadEnd - load
        guard size <= kernel.size - fileOffset else {
            throw .truncated(kernel, needed: fileOffset + size, part: "image")
        }
        let end = max(loadEnd, UInt64(header.bssEnd))
        guard planner.reserve(base: load, size: end - load) else {
            throw .kernelDoesNotFit(kernel, base: load, size: end - load, layout: planner.request.layout)
        }
        guard UInt64(header.entry) >= load, UInt64(header.entry) < end else {
            throw .invalidHeader(
                kernel, why: "its entry \(BootError.hexadecimal(UInt64(header.entry))) lies outside its image")
        }
        planner.place(.file(kernel, offset: fileOffset, count: size), at: load)
        if end > loadEnd { planner.place(.zeros(end - loadEnd), at: loadEnd) }
        return UInt64(header.entry)
    }
}

/// The information that EBX points to (§3.3).
enum MultibootInformation {
    private enum Field {
        static let size = 120
        static let flags = 0
        static let lowerMemory = 4
        static let upperMemory = 8
        static let commandLine = 16
        static let moduleCount = 20
        static let moduleList = 24
        static let mapLength = 44
        static let mapAddress = 48
        static let loaderName = 64
    }

    /// Memory sizes, command line, modules, memory map, loader's name.
    private static let flags: UInt32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    private static let commandLineLimit = 65535

    static func place(_ planner: inout BootPlanner) throws(BootError) -> UInt64 {
        let request = planner.request
        // As GRUB and QEMU have it: the kernel's name is the command line's first word.
        let words = request.commandLine.isEmpty ? request.kernel.name : request.kernel.name + " " + request.commandLine
        let commandLine = Array(words.utf8)
        guard commandLine.count <= commandLineLimit else {
            throw .commandLineTooLong(request.kernel, count: commandLine.count, limit: commandLineLimit)
        }
        var info = [UInt8](repeating: 0, count: Field.size)
        func store(_ value: UInt64, at offset: Int) { info.store(UInt32(truncatingIfNeeded: value), at: offset) }
        store(UInt64(flags), at: Field.flags)
        store(PhysicalMemoryMap.conventionalEnd >> 10, at: Field.lowerMemory)
        store((request.layout.lowEnd - PhysicalMemoryMap.extendedBase) >> 10, at: Field.upperMemory)
        let commandLineAddress = try planner.placeStructure(commandLine + [0], "command line")
        store(commandLineAddress, at: Field.commandLine)
        let modules = try placeModules(&planner)
        store(UInt64(request.modules.count), at: Field.moduleCount)
        store(modules, at: Field.moduleList)
        let map = memoryMap(request.layout)
        let mapAddress = try planner.placeStructure(map, "memory map")
        store(UInt64(map.count), at: Field.mapLength)
        store(mapAddress, at: Field.mapAddress)
        let nameAddress = try planner.placeStructure(Array("Martlet\0".utf8), "loader name")
        store(nameAddress, at: Field.loaderName)
        return try planner.placeStructure(info, "multiboot information")
    }

    /// Each module above the kernel, on a page boundary; its string is "file arguments". Returns the list's address.
    private static func placeModules(_ planner: inout BootPlanner) throws(BootError) -> UInt64 {
        guard !planner.request.modules.isEmpty else { return 0 }
        var list: [UInt8] = []
        for module in planner.request.modules {
            let start = max(
                planner.extendedMemory.lowerBound, min(planner.highestEnd, planner.extendedMemory.upperBound))
            let range = try planner.placeModule(module, in: start..<planner.extendedMemory.upperBound, fromTop: false)
            let words = module.arguments.isEmpty ? module.file.name : module.file.name + " " + module.arguments
            let string = try planner.placeStructure(Array(words.utf8) + [0], "module string")
            for value in [range.lowerBound, range.upperBound, string, 0] {
                list.append(littleEndian: UInt32(truncatingIfNeeded: value))
            }
        }
        return try planner.placeStructure(list, "module list")
    }

    /// Entries begin with the size of the rest of them.
    private static func memoryMap(_ layout: PhysicalMemoryMap) -> [UInt8] {
        var bytes: [UInt8] = []
        for entry in layout.e820 {
            bytes.append(littleEndian: UInt32(20))
            bytes.append(littleEndian: entry.base)
            bytes.append(littleEndian: entry.size)
            bytes.append(littleEndian: entry.type.rawValue)
        }
        return bytes
    }
}
