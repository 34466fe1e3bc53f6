/// An executable ELF file's headers, 32 or 64 bits wide (System V ABI, "Object Files"), checked against the file.
struct ELFImage: Sendable {
    struct Segment: Equatable, Sendable {
        var offset: UInt64
        var virtualAddress: UInt64
        var physicalAddress: UInt64
        var fileSize: UInt64
        var memorySize: UInt64
    }

    static let magic: [UInt8] = [0x7F, 0x45, 0x4C, 0x46]
    private static let machine386: UInt16 = 3
    private static let machineX86_64: UInt16 = 62
    private static let executable: UInt16 = 2
    private static let sharedObject: UInt16 = 3
    private static let loadable: UInt32 = 1
    private static let note: UInt32 = 4
    /// Kernels have about five; more than this is no kernel.
    private static let segmentLimit = 256

    let is64Bit: Bool
    let entry: UInt64
    /// PT_LOAD with some memory, none of them overlapping another, all inside the file.
    private(set) var segments: [Segment] = []
    private(set) var notes: [Segment] = []

    static func isPresent(_ window: [UInt8]) -> Bool { window.starts(with: magic) }

    init(_ file: any BootFile, window: [UInt8]) throws(BootError) {
        let fields = ELFFields(window, file)
        guard let identity = window.load(UInt32.self, at: 4), window.count >= 16 else {
            throw .truncated(file, needed: 52, part: "ELF header")
        }
        let (elfClass, encoding) = (UInt8(truncatingIfNeeded: identity), UInt8(truncatingIfNeeded: identity >> 8))
        guard elfClass == 1 || elfClass == 2, encoding == 1 else {
            throw .unsupported(
                file, why: "its ELF class \(elfClass) and byte order \(encoding) are not x86's",
                advice: "use an x86 or x86-64 kernel")
        }
        let is64Bit = elfClass == 2
        self.is64Bit = is64Bit
        let type: UInt16 = try fields.load(at: 16)
        let machine: UInt16 = try fields.load(at: 18)
        guard machine == (is64Bit ? Self.machineX86_64 : Self.machine386) else {
            throw .unsupported(
                file, why: "it is an ELF file for machine \(machine)", advice: "use an x86 or x86-64 kernel")
        }
        guard type == Self.executable || type == Self.sharedObject else {
            throw .unsupported(
                file, why: "it is an ELF file of type \(type), not an executable", advice: "link it first")
        }
        entry = try fields.word(at: 24, is64Bit)
        let headers = try Self.programHeaders(fields, is64Bit, file)
        for (kind, segment) in headers where kind == Self.loadable && segment.memorySize > 0 {
            segments.append(segment)
        }
        for (kind, segment) in headers where kind == Self.note { notes.append(segment) }
        guard !segments.isEmpty else { throw .invalidHeader(file, why: "it has no loadable segment") }
    }

    private static func programHeaders(
        _ fields: ELFFields, _ is64Bit: Bool, _ file: any BootFile
    ) throws(BootError) -> [(UInt32, Segment)] {
        let offset = try fields.word(at: is64Bit ? 32 : 28, is64Bit)
        let entrySize: UInt16 = try fields.load(at: is64Bit ? 54 : 42)
        let count: UInt16 = try fields.load(at: is64Bit ? 56 : 44)
        let minimumSize = is64Bit ? 56 : 32
        guard entrySize >= minimumSize, count <= segmentLimit else {
            throw .invalidHeader(file, why: "it has \(count) program headers of \(entrySize) bytes")
        }
        let size = UInt64(entrySize) * UInt64(count)
        guard offset <= file.size, size <= file.size - offset else {
            throw .truncated(file, needed: offset &+ size, part: "program header table")
        }
        let table = ELFFields(try file.bootBytes(at: offset, count: Int(size)), file)
        var headers: [(UInt32, Segment)] = []
        for index in 0..<Int(count) {
            let header = try segment(table, at: index * Int(entrySize), is64Bit)
            try check(header, file)
            headers.append(header)
        }
        return headers
    }

    private static func segment(
        _ table: ELFFields, at start: Int, _ is64Bit: Bool
    ) throws(BootError) -> (UInt32, Segment) {
        let kind: UInt32 = try table.load(at: start)
        let offsets = is64Bit ? [8, 16, 24, 32, 40] : [4, 8, 12, 16, 20]
        var values: [UInt64] = []
        for offset in offsets { values.append(try table.word(at: start + offset, is64Bit)) }
        return (
            kind,
            Segment(
                offset: values[0], virtualAddress: values[1], physicalAddress: values[2], fileSize: values[3],
                memorySize: values[4])
        )
    }

    private static func check(_ header: (kind: UInt32, segment: Segment), _ file: any BootFile) throws(BootError) {
        guard header.kind == loadable || header.kind == note else { return }
        let segment = header.segment
        guard segment.offset <= file.size, segment.fileSize <= file.size - segment.offset else {
            throw .truncated(file, needed: segment.offset &+ segment.fileSize, part: "segment")
        }
        guard header.kind != loadable || segment.fileSize <= segment.memorySize else {
            throw .invalidHeader(
                file, why: "a segment has \(segment.fileSize) bytes in the file but \(segment.memorySize) in memory")
        }
    }

    /// The entry as a physical address: some kernels name it by its virtual one.
    var physicalEntry: UInt64 { physicalAddress(of: entry) }

    private func physicalAddress(of address: UInt64) -> UInt64 {
        for segment in segments where address >= segment.virtualAddress {
            let offset = address - segment.virtualAddress
            if offset < segment.memorySize { return segment.physicalAddress &+ offset }
        }
        return address
    }

    func contains(physicalAddress address: UInt64) -> Bool {
        segments.contains { address >= $0.physicalAddress && address - $0.physicalAddress < $0.memorySize }
    }

    /// Takes the segments' RAM, and places their bytes and zeros.
    func place(_ planner: inout BootPlanner) throws(BootError) {
        for segment in segments {
            guard planner.reserve(base: segment.physicalAddress, size: segment.memorySize) else {
                throw misplaced(segment, planner)
            }
            if segment.fileSize > 0 {
                planner.place(
                    .file(planner.request.kernel, offset: segment.offset, count: segment.fileSize),
                    at: segment.physicalAddress)
            }
            if segment.memorySize > segment.fileSize {
                planner.place(
                    .zeros(segment.memorySize - segment.fileSize), at: segment.physicalAddress + segment.fileSize)
            }
        }
    }

    private func misplaced(_ segment: Segment, _ planner: BootPlanner) -> BootError {
        let request = planner.request
        let (base, size) = (segment.physicalAddress, segment.memorySize)
        guard request.layout.isUsable(base: base, size: size) else {
            return .kernelDoesNotFit(request.kernel, base: base, size: size, layout: request.layout)
        }
        return .invalidHeader(request.kernel, why: "two segments share memory at \(BootError.hexadecimal(base))")
    }
}

/// Bounds-checked fields of a header.
struct ELFFields {
    private let bytes: [UInt8]
    private let file: any BootFile

    init(_ bytes: [UInt8], _ file: any BootFile) {
        self.bytes = bytes
        self.file = file
    }

    func load<T: FixedWidthInteger>(_ type: T.Type = T.self, at offset: Int) throws(BootError) -> T {
        guard let value = bytes.load(type, at: offset) else {
            throw .truncated(file, needed: UInt64(offset + T.bitWidth / 8), part: "ELF header")
        }
        return value
    }

    /// An address or size, which is as wide as the file's class.
    func word(at offset: Int, _ is64Bit: Bool) throws(BootError) -> UInt64 {
        is64Bit ? try load(UInt64.self, at: offset) : UInt64(try load(UInt32.self, at: offset))
    }
}
