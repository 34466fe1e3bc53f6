internal import X86

/// ELF kernels: by PVH where they have its note, and a 64-bit vmlinux without it by the 64-bit boot protocol.
enum ELFLoader {
    /// XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h).
    private static let physicalEntryNote: UInt32 = 18
    private static let noteOwner = Array("Xen\0".utf8)
    /// A vmlinux has some hundred bytes of notes.
    private static let noteLimit: UInt64 = 65536

    static func plan(_ request: BootRequest, window: [UInt8]) throws(BootError) -> BootPlan {
        let kernel = request.kernel
        let image = try ELFImage(kernel, window: window)
        var planner = BootPlanner(request)
        try image.place(&planner)
        if let entry = try pvhEntry(image, kernel) {
            guard image.contains(physicalAddress: entry) else {
                throw .invalidHeader(
                    kernel, why: "its PVH entry \(BootError.hexadecimal(entry)) lies in none of its segments")
            }
            return try PVHLoader.plan(&planner, entry: entry)
        }
        guard image.is64Bit else {
            throw .unsupported(
                kernel, why: "it is a 32-bit ELF file with neither a PVH note nor a multiboot header",
                advice: "use a bzImage, or a kernel with CONFIG_PVH")
        }
        guard image.contains(physicalAddress: image.physicalEntry) else {
            throw .invalidHeader(
                kernel, why: "its entry \(BootError.hexadecimal(image.entry)) lies in none of its segments")
        }
        let commandLine = try planner.placeCommandLine(limit: LinuxBootParameters.commandLineLimit)
        let initrd = try planner.placeInitrd(below: .max)
        var parameters = LinuxBootParameters()
        parameters.makeHeader()
        parameters.describe(request, commandLine: commandLine, initrd: initrd)
        return try planner.longModePlan(parameters, entry: image.physicalEntry)
    }

    /// The 32-bit entry that a note of Xen's names, in four bytes or eight.
    private static func pvhEntry(_ image: ELFImage, _ kernel: any BootFile) throws(BootError) -> UInt64? {
        for segment in image.notes {
            let count = min(segment.fileSize, noteLimit)
            let bytes = try kernel.bootBytes(at: segment.offset, count: Int(count))
            if let entry = pvhEntry(inNotes: bytes) { return entry }
        }
        return nil
    }

    /// Each note is name size, descriptor size and type, then both, padded to four bytes (System V ABI, "Note
    /// Section").
    static func pvhEntry(inNotes bytes: [UInt8]) -> UInt64? {
        var offset = 0
        while let nameSize: UInt32 = bytes.load(at: offset), let size: UInt32 = bytes.load(at: offset + 4),
            let type: UInt32 = bytes.load(at: offset + 8)
        {
            // Each at most 2^32, in Int: no overflow.
            let name = offset + 12
            let descriptor = name + (Int(nameSize) + 3) & ~3
            let next = descriptor + (Int(size) + 3) & ~3
            guard descriptor <= bytes.count else { return nil }
            if type == physicalEntryNote, bytes[name..<descriptor].starts(with: noteOwner) {
                return size >= 8
                    ? bytes.load(UInt64.self, at: descriptor) : bytes.load(UInt32.self, at: descriptor).map(UInt64.init)
            }
            offset = next
        }
        return nil
    }
}

/// The PVH entry: 32-bit protected mode with hvm_start_info (xen/include/public/arch-x86/hvm/start_info.h).
enum PVHLoader {
    private static let magic: UInt32 = 0x336E_C578
    private static let version: UInt32 = 1

    static func plan(_ planner: inout BootPlanner, entry: UInt64) throws(BootError) -> BootPlan {
        let request = planner.request
        let commandLine = try planner.placeCommandLine(limit: LinuxBootParameters.commandLineLimit)
        let initrd = try planner.placeInitrd(below: .max)
        var moduleList: UInt64 = 0
        if let initrd {
            var bytes: [UInt8] = []
            for value in [initrd.lowerBound, initrd.upperBound - initrd.lowerBound, 0, 0] {
                bytes.append(littleEndian: value)
            }
            moduleList = try planner.placeStructure(bytes, "module list")
        }
        let map = memoryMap(request.layout)
        let mapAddress = try planner.placeStructure(map, "memory map")

        var info: [UInt8] = []
        for value in [magic, version, 0, initrd == nil ? 0 : 1] { info.append(littleEndian: value) }
        for value in [moduleList, commandLine, request.rsdp?.rawValue ?? 0, mapAddress] {
            info.append(littleEndian: value)
        }
        info.append(littleEndian: UInt32(request.layout.e820.count))
        info.append(littleEndian: UInt32(0))
        let infoAddress = try planner.placeStructure(info, "start info")
        let gdt = try planner.placeStructure(BootGDT.bytes, "segment descriptors")
        var state = BootState.protectedMode(.pvh, gdtBase: gdt)
        state.registers.rip = entry
        state.registers.rbx = infoAddress
        return BootPlan(state: state, placements: planner.placements)
    }

    /// hvm_memmap_table_entry: address, size, type and four reserved bytes; the types are e820's.
    private static func memoryMap(_ layout: PhysicalMemoryMap) -> [UInt8] {
        var bytes: [UInt8] = []
        for entry in layout.e820 {
            bytes.append(littleEndian: entry.base)
            bytes.append(littleEndian: entry.size)
            bytes.append(littleEndian: entry.type.rawValue)
            bytes.append(littleEndian: UInt32(0))
        }
        return bytes
    }
}
