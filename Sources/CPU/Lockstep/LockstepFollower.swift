internal import CHost

/// An instruction that the shadow executed, for a report.
struct TracedInstruction {
    var address: UInt64 = 0
    var mnemonic: UInt16 = 0
    var length: UInt8 = 0
}

/// The shadow's way through a unit: the interpreter's loop, exactly as many instructions as the primary.
struct LockstepFollower {
    private static let traceLength = 16
    /// A ring.
    private let trace: UnsafeMutablePointer<TracedInstruction>
    private var traced = 0
    /// The last instruction that was begun; good until the next unit.
    private(set) var lastInstruction: Insn?
    private let endOfBlock = unsafeBitCast(endOfBlockHandler, to: UnsafeMutableRawPointer?.self)
    private let stale = unsafeBitCast(staleHandler, to: UnsafeMutableRawPointer?.self)

    init() {
        trace = .allocate(capacity: Self.traceLength)
        trace.initialize(repeating: TracedInstruction(), count: Self.traceLength)
    }

    func deallocate() { trace.deallocate() }

    /// Oldest first.
    var lastInstructions: [TracedInstruction] {
        let count = min(traced, Self.traceLength)
        return (traced - count..<traced).map { trace[$0 % Self.traceLength] }
    }

    @inline(__always) private mutating func note(_ i: Insn, _ address: UInt64) {
        trace[traced % Self.traceLength] = TracedInstruction(
            address: address, mnemonic: i.pointee.mnemonic, length: i.pointee.length)
        traced &+= 1
        lastInstruction = i
    }

    /// A place-holder, which is no instruction and leads to one.
    @inline(__always) func isPlaceHolder(_ i: Insn) -> Bool {
        let handler = i.pointee.interpreted
        return handler == endOfBlock || handler == stale
    }

    /// Runs until `count` instructions are complete in all. With `attempts`, the one behind them is begun as well and
    /// expected to stop the processor: it faults, asks user space, or pauses.
    mutating func run(_ s: State, to count: UInt64, attempts: Bool) {
        lastInstruction = nil
        guard s.pointee.instruction_count != count || attempts else { return }
        guard var i = findBlock(s) else { return }
        while true {
            while isPlaceHolder(i) {
                s.pointee.rip = instructionAddress(s, i)
                if s.pointee.instruction_count == count, !attempts { return }
                guard let next = lookupSlow(s) else { return }
                i = next
            }
            let address = instructionAddress(s, i)
            if s.pointee.instruction_count > count || (s.pointee.instruction_count == count && !attempts) {
                s.pointee.rip = address
                return
            }
            note(i, address)
            // The last one must not look up its successor: an interrupt may come first.
            let isLast = !attempts && s.pointee.instruction_count &+ 1 == count
            if isLast { martlet_begin_step(s) }
            s.pointee.instruction_count &+= 1
            let next = unsafeBitCast(i.pointee.interpreted, to: Handler.self)(s, i)
            if isLast { martlet_end_step(s) }
            guard let next else { return }
            i = next
        }
    }
}

// MARK: - Dead flags

extension LockstepFollower {
    private enum Answer { case dead, live, unknown }
    private static let lookaheadLimit = 64

    /// Whether the guest overwrites all six status flags before it reads one, from rip of the shadow on: in the rest of
    /// the block that it is in, then as far as the page says, along direct jumps. Only translated code can have dead
    /// flags: 64-bit code, and 32-bit code with flat segments.
    func statusIsDead(_ shadow: Processor) -> Bool {
        let s = shadow.state
        guard s.pointee.mode == CodeMode.bits64 || s.pointee.is_flat32 != 0 else { return false }
        var rip = s.pointee.rip
        if var i = lastInstruction {
            if instructionAddress(s, i) != rip { i += 1 }
            while instructionAddress(s, i) == rip, i.pointee.interpreted != endOfBlock {
                switch Self.answer(i) {
                case .dead: return true
                case .live: return false
                case .unknown: break
                }
                if i.pointee.mnemonic == Mnemonic.jmp.rawValue { break }
                rip = nextInstructionAddress(s, i)
                i += 1
            }
        }
        return isDeadAhead(shadow, rip)
    }

    private static func answer(_ i: Insn) -> Answer {
        let mnemonic = Mnemonic(rawValue: i.pointee.mnemonic) ?? .invalid
        // Cut to 16 bits it is the interpreter's.
        if mnemonic == .jmp { return i.pointee.size == 2 ? .live : .unknown }
        let use = FlagUse(i, mnemonic, isNative: true)
        return use.reads ? .live : (use.kills ? .dead : .unknown)
    }

    private func isDeadAhead(_ shadow: Processor, _ rip: UInt64) -> Bool {
        let s = shadow.state
        guard let host = peekCodePage(s, rip) else { return false }
        var position = Int(rip & pageMask)
        for _ in 0..<Self.lookaheadLimit {
            guard position >= 0, position < Int(pageSize) else { return false }
            var i = martlet_insn()
            var decoder = Decoder(
                bytes: UnsafePointer(host + position), available: min(15, Int(pageSize) - position),
                mode: s.pointee.mode, tables: shadow.tables)
            guard decoder.decode(into: &i) == .done else { return false }
            i.is_flat32 = s.pointee.is_flat32
            position += Int(i.length)
            switch withUnsafeMutablePointer(to: &i, Self.answer) {
            case .dead: return true
            case .live: return false
            case .unknown:
                if i.mnemonic == Mnemonic.jmp.rawValue { position += Int(truncatingIfNeeded: i.immediate) }
            }
        }
        return false
    }
}

/// The page of code at a linear address, found without any trace in the page tables or the TLB.
func peekCodePage(_ s: State, _ address: UInt64) -> UnsafeMutablePointer<UInt8>? {
    func host(_ physical: UInt64) -> UnsafeMutablePointer<UInt8>? {
        guard let slot = findSlot(s, physical), let base = slot.pointee.host else { return nil }
        return base + Int(physical &- slot.pointee.guest_physical)
    }
    if s.pointee.cr0 & Control.paging == 0 { return host(address & 0xFFFF_FFFF & ~pageMask) }
    if s.pointee.cr4 & Control.physicalAddressExtension == 0 { return peekCodePage32(s, address, host) }
    // Three levels outside long mode, of which the first has four entries and no rights (SDM vol. 3A §4.4.1).
    var table = s.pointee.cr3 & (s.isLongMode ? PageBits.frame : 0xFFFF_FFE0)
    for level in (0..<(s.isLongMode ? 4 : 3)).reversed() {
        let shift = UInt64(12 + 9 * level)
        let mask: UInt64 = level == 2 && !s.isLongMode ? 3 : 511
        guard let place = host(table &+ ((address >> shift) & mask) &* 8) else { return nil }
        let entry = UnsafeRawPointer(place).load(as: UInt64.self)
        guard entry & PageBits.present != 0 else { return nil }
        guard level > 0, entry & PageBits.large == 0 || level == 3 || mask == 3 else {
            let offsets: UInt64 = (1 << shift) - 1
            return host((entry & PageBits.frame & ~offsets) | (address & offsets & ~pageMask))
        }
        table = entry & PageBits.frame
    }
    return nil
}

/// The same with 32-bit paging (SDM vol. 3A §4.3).
private func peekCodePage32(
    _ s: State, _ address: UInt64, _ host: (UInt64) -> UnsafeMutablePointer<UInt8>?
) -> UnsafeMutablePointer<UInt8>? {
    func entry(_ table: UInt64, _ index: UInt64) -> UInt64? {
        guard let place = host(table &+ (index & 1023) &* 4) else { return nil }
        let entry = UInt64(UnsafeRawPointer(place).load(as: UInt32.self))
        return entry & PageBits.present != 0 ? entry : nil
    }
    guard let directory = entry(s.pointee.cr3 & 0xFFFF_F000, address >> 22) else { return nil }
    if directory & PageBits.large != 0, s.pointee.cr4 & Control.pageSizeExtensions != 0 {
        let high = (directory >> 13 & 0xFF) << 32
        return host(high | directory & 0xFFC0_0000 | address & 0x3F_F000)
    }
    guard let page = entry(directory & 0xFFFF_F000, address >> 12) else { return nil }
    return host(page & 0xFFFF_F000)
}
