public import GuestMemory
internal import X86

/// Something that belongs at a place in guest memory.
struct BootPlacement: Sendable {
    enum Content: Sendable {
        case bytes([UInt8])
        case file(any BootFile, offset: UInt64, count: UInt64)
        case zeros(UInt64)
    }

    var base: UInt64
    var content: Content

    var count: UInt64 {
        switch content {
        case .bytes(let bytes): UInt64(bytes.count)
        case .file(_, _, let count), .zeros(let count): count
        }
    }
}

/// A checked boot: everything was found to fit, nothing is copied yet.
public struct BootPlan: Sendable {
    public let state: BootState
    let placements: [BootPlacement]

    /// How much is copied at once.
    private static let chunk: UInt64 = 1 << 20

    /// Copies everything into guest memory, and returns `state`. May be used again after a reset.
    public func write(to memory: GuestMemory) throws(BootError) -> BootState {
        for placement in placements { try Self.write(placement, to: memory) }
        return state
    }

    private static func write(_ placement: BootPlacement, to memory: GuestMemory) throws(BootError) {
        var done: UInt64 = 0
        while done < placement.count {
            let count = min(chunk, placement.count - done)
            let bytes: [UInt8]
            switch placement.content {
            case .bytes(let all): bytes = Array(all[Int(done)..<Int(done + count)])
            case .zeros: bytes = [UInt8](repeating: 0, count: Int(count))
            case .file(let file, let offset, _): bytes = try file.bootBytes(at: offset + done, count: Int(count))
            }
            do {
                try memory.write(bytes, at: GuestPhysicalAddress(placement.base + done))
            } catch {
                // The plan was made for another machine than `memory`'s.
                throw BootError(
                    .kernelDoesNotFit, "Cannot write the guest's memory", why: "\(error)",
                    advice: "give the guest more memory (--memory)")
            }
            done += count
        }
    }
}

extension BootFile {
    func bootBytes(at offset: UInt64, count: Int) throws(BootError) -> [UInt8] {
        let bytes: [UInt8]
        do {
            bytes = try read(count: count, at: offset)
        } catch {
            throw .unreadable(self, error)
        }
        guard bytes.count == count else { throw .unreadable(self, BootFileError("it became shorter")) }
        return bytes
    }
}

/// Collects placements, and knows which RAM is still free.
struct BootPlanner {
    let request: BootRequest
    private(set) var placements: [BootPlacement] = []
    /// What the image and everything placed so far take.
    private var occupied: [Range<UInt64>] = []

    /// Where small structures go: above what a real-mode BIOS, and many a kernel's own CPU start-up code, use.
    static let structures: Range<UInt64> = 0x8000..<PhysicalMemoryMap.conventionalEnd

    init(_ request: BootRequest) {
        self.request = request
    }

    /// The RAM from 1 MiB up to the hole below 4 GiB.
    var extendedMemory: Range<UInt64> { PhysicalMemoryMap.extendedBase..<request.layout.lowEnd }

    /// The end of the highest thing placed.
    var highestEnd: UInt64 { occupied.map(\.upperBound).max() ?? 0 }

    func isFree(base: UInt64, size: UInt64) -> Bool {
        guard let range = Self.range(base, size) else { return false }
        return !occupied.contains { $0.overlaps(range) }
    }

    private static func range(_ base: UInt64, _ size: UInt64) -> Range<UInt64>? {
        let (end, overflow) = base.addingReportingOverflow(size)
        return overflow ? nil : base..<end
    }

    /// Takes RAM that the kernel insists on; false when it is not all usable and free.
    mutating func reserve(base: UInt64, size: UInt64) -> Bool {
        guard size > 0, request.layout.isUsable(base: base, size: size), isFree(base: base, size: size) else {
            return false
        }
        occupied.append(base..<base + size)
        return true
    }

    mutating func place(_ content: BootPlacement.Content, at base: UInt64) {
        placements.append(BootPlacement(base: base, content: content))
    }

    /// The free ranges inside `limits`, ascending.
    private func gaps(in limits: Range<UInt64>) -> [Range<UInt64>] {
        var gaps: [Range<UInt64>] = []
        var position = limits.lowerBound
        for range in occupied.sorted(by: { $0.lowerBound < $1.lowerBound }) {
            let end = min(range.lowerBound, limits.upperBound)
            if end > position { gaps.append(position..<end) }
            position = max(position, range.upperBound)
        }
        if position < limits.upperBound { gaps.append(position..<limits.upperBound) }
        return gaps
    }

    func largestGap(in limits: Range<UInt64>) -> UInt64 {
        gaps(in: limits).map { $0.upperBound - $0.lowerBound }.max() ?? 0
    }

    /// The lowest, or highest, free place for `size` bytes; nil when there is none.
    mutating func allocate(
        size: UInt64, alignment: UInt64, in limits: Range<UInt64>, fromTop: Bool = false
    ) -> UInt64? {
        let gaps = gaps(in: limits)
        for gap in fromTop ? gaps.reversed() : gaps where gap.upperBound - gap.lowerBound >= size {
            let candidate =
                fromTop
                ? (gap.upperBound - size).roundedDown(to: alignment) : gap.lowerBound.roundedUp(to: alignment)
            guard let base = candidate, base >= gap.lowerBound, base <= gap.upperBound - size else { continue }
            if reserve(base: base, size: max(size, 1)) { return base }
        }
        return nil
    }

    /// Places a structure of ours below 640 KiB, or above 1 MiB where the image covers all of that.
    mutating func placeStructure(
        _ bytes: [UInt8], alignment: UInt64 = 16, _ name: String
    ) throws(BootError) -> UInt64 {
        let size = UInt64(bytes.count)
        guard
            let base = allocate(size: size, alignment: alignment, in: Self.structures)
                ?? allocate(size: size, alignment: alignment, in: extendedMemory)
        else { throw .kernelHasNoRoom(request.kernel, part: name, size: size) }
        place(.bytes(bytes), at: base)
        return base
    }

    /// The command line with its terminator.
    mutating func placeCommandLine(limit: Int) throws(BootError) -> UInt64 {
        let bytes = Array(request.commandLine.utf8)
        guard bytes.count <= limit else {
            throw .commandLineTooLong(request.kernel, count: bytes.count, limit: limit)
        }
        return try placeStructure(bytes + [0], "command line")
    }

    /// Places a module's file on a page boundary.
    mutating func placeModule(
        _ module: BootModule, in limits: Range<UInt64>, fromTop: Bool
    ) throws(BootError) -> Range<UInt64> {
        let size = module.file.size
        guard size > 0 else { throw .empty(module.file) }
        guard let base = allocate(size: size, alignment: 4096, in: limits, fromTop: fromTop) else {
            throw .moduleDoesNotFit(module.file, free: largestGap(in: limits), layout: request.layout)
        }
        place(.file(module.file, offset: 0, count: size), at: base)
        return base..<base + size
    }

    /// Linux's one initrd, as high as it may be; nil without one.
    mutating func placeInitrd(below limit: UInt64) throws(BootError) -> Range<UInt64>? {
        guard request.modules.count <= 1 else { throw .tooManyModules(request.kernel, count: request.modules.count) }
        guard let module = request.modules.first else { return nil }
        let end = max(extendedMemory.lowerBound, min(limit, extendedMemory.upperBound))
        return try placeModule(module, in: extendedMemory.lowerBound..<end, fromTop: true)
    }
}
