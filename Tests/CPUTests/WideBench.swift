internal import CHost
internal import CTestHost
internal import Glibc

@testable import CPU

/// One VEX or EVEX instruction in 64-bit mode, encoded from the manual's tables (SDM vol. 2 §2.3.5, §2.7.1). Memory forms
/// address [R15], or [R15 + index * scale].
struct WideCase: CustomStringConvertible {
    var encoding: WideEncoding
    var map: UInt8
    var pp: UInt8
    var opcode: UInt8
    var w = false
    var length: UInt8 = 0
    var b = false
    var mask: UInt8 = 0
    var zeroes = false
    var v: UInt8 = 0
    /// Register number or opcode extension.
    var reg: UInt8 = 0
    /// Nil: memory.
    var rm: UInt8?
    /// The vector index register and its scale.
    var index: UInt8?
    var scale: UInt8 = 0
    /// As the instruction has it: EVEX counts in units.
    var displacement: Int8?
    var immediate: UInt8?

    private var isVZero: Bool { encoding == .vex && map == 1 && opcode == 0x77 }

    var bytes: [UInt8] {
        let rmNumber = rm ?? 15
        let r = reg & 8 == 0 ? UInt8(0x80) : 0
        let b3 = rmNumber & 8 == 0 ? UInt8(0x20) : 0
        let highX = rm != nil && encoding == .evex ? rmNumber & 16 == 0 : (index ?? 0) & 8 == 0
        let x: UInt8 = highX ? 0x40 : 0
        var bytes: [UInt8] = []
        if encoding == .vex {
            bytes = [0xC4, r | x | b3 | map, (w ? 0x80 : 0) | (~v & 15) << 3 | length << 2 | pp]
        } else {
            let high = index.map { $0 & 16 } ?? (v & 16)
            bytes = [0x62, r | x | b3 | (~reg & 16) | map, (w ? 0x80 : 0) | (~v & 15) << 3 | 4 | pp]
            bytes.append((zeroes ? 0x80 : 0) | length << 5 | (b ? 0x10 : 0) | (~high & 16) >> 1 | mask)
        }
        bytes.append(opcode)
        if isVZero { return bytes }
        let mod: UInt8 = rm != nil ? 0xC0 : (displacement == nil ? 0 : 0x40)
        let low: UInt8 = index != nil ? 4 : rmNumber & 7
        bytes.append(mod | (reg & 7) << 3 | low)
        if let index { bytes.append(scale << 6 | (index & 7) << 3 | 7) }
        if let displacement { bytes.append(UInt8(bitPattern: displacement)) }
        if let immediate { bytes.append(immediate) }
        return bytes
    }

    var description: String {
        bytes.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined(separator: " ")
    }
}

/// Everything that a VEX or EVEX instruction can see and change.
struct WideMachine: Equatable {
    var gpr = [UInt64](repeating: 0, count: 16)
    var flags: UInt64 = 0
    var mxcsr: UInt32 = 0x1F80
    var zmm = [UInt64](repeating: 0, count: 32 * 8)
    var opmask = [UInt64](repeating: 0, count: 8)
    var memory = [UInt8](repeating: 0, count: WideBench.memorySize)
}

/// How an instruction ended.
struct WideOutcome {
    var machine: WideMachine
    /// Nil: it completed.
    var exception: UInt64?
    var address: UInt64 = 0
}

/// Runs single instructions on the engine and on the host's processor, by exceptions too.
final class WideBench {
    static let memorySize = 1024
    /// R15 points here into the memory.
    static let middle = 512
    static let guestBase: UInt64 = 0x10_0000
    static let hasAVX512 = VectorUnit.has(.avx512)
    /// Code and data of the host's side, below 2 GiB; the last page cannot be accessed.
    private static let regionSize = 0x2_0000
    private static let contextOffset = 0x1_0000
    static let dataOffset = 0x1_E000
    private static let zmmOffset = 0
    private static let opmaskOffset = 2048
    private static let mxcsrOffset = 2112
    private static let defaultMXCSROffset = 2120

    let processor = Processor(apicID: 0)
    let stubs = StubCache()
    let ram: UnsafeMutableRawPointer
    private let insn: Insn
    private let region: UnsafeMutableRawPointer
    private var codeUsed = 0

    var state: State { processor.state }

    init() {
        ram = .allocate(byteCount: 8192, alignment: 4096)
        ram.initializeMemory(as: UInt8.self, repeating: 0, count: 8192)
        insn = .allocate(capacity: 2)
        insn.initialize(repeating: martlet_insn(), count: 2)
        let place = mmap(
            nil, Self.regionSize, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0)
        precondition(place != MAP_FAILED, "no memory below 2 GiB")
        region = place!
        precondition(mprotect(region + Self.regionSize - 4096, 4096, PROT_NONE) == 0)
        var slot = martlet_slot()
        slot.guest_physical = Self.guestBase
        slot.size = 8192
        slot.host = ram.assumingMemoryBound(to: UInt8.self)
        processor.setSlots([slot])
        let s = state
        s.pointee.mode = CodeMode.bits64
        s.pointee.cr0 = Control.protectionEnable | Control.numericError
        s.pointee.cr4 = Control.fxsaveSupport | Control.simdExceptions | Control.extendedStateEnable
        s.pointee.xcr0 = VectorUnit.supportedComponents
        s.setRegister(Int(MARTLET_ZERO_REGISTER), 0)
        s.setRegister(Int(MARTLET_PAGE_RIP_REGISTER), 0x4000)
        s.powerOnVectorState()
        updateVectorUnits(s)
        test_host_begin()
    }

    deinit {
        test_host_end()
        munmap(region, Self.regionSize)
        ram.deallocate()
        insn.deallocate()
    }

    // MARK: Engine

    /// Decodes and binds. Nil: undefined.
    func prepare(_ c: WideCase) -> Insn? {
        let bytes = c.bytes + [UInt8](repeating: 0x90, count: 16)
        let result = bytes.withUnsafeBufferPointer { buffer in
            var decoder = Decoder(bytes: buffer.baseAddress!, available: 15, mode: CodeMode.bits64, tables: .shared)
            return decoder.decode(into: insn)
        }
        guard result == .done, insn.pointee.length == UInt8(c.bytes.count) else { return nil }
        if bindVector(insn, stubs: stubs) { return insn }
        stubs.reset()
        return bindVector(insn, stubs: stubs) ? insn : nil
    }

    func load(_ machine: WideMachine, base: UInt64) {
        let s = state
        for number in 0..<16 { s.setRegister(number, machine.gpr[number]) }
        s.setRegister(15, base)
        s.setRegister(7, base)
        s.setFlags(machine.flags)
        s.mxcsr = machine.mxcsr
        machine.zmm.withUnsafeBytes { s.vectorRegister(0).copyMemory(from: $0.baseAddress!, byteCount: 2048) }
        for number in 0..<8 { martlet_opmask(s)[number] = machine.opmask[number] }
    }

    func current(_ before: WideMachine) -> WideMachine {
        let s = state
        var after = before
        for number in 0..<16 where ![4, 7, 14, 15].contains(number) { after.gpr[number] = s.register(number) }
        after.flags = s.flags & VectorBench.statusFlags
        after.mxcsr = s.mxcsr
        after.zmm.withUnsafeMutableBytes {
            $0.copyMemory(from: UnsafeRawBufferPointer(start: s.vectorRegister(0), count: 2048))
        }
        after.opmask = (0..<8).map { martlet_opmask(s)[$0] }
        return after
    }

    /// One instruction on the engine, R15 `offset` bytes beyond the middle of the memory.
    func engine(_ i: Insn, _ machine: WideMachine, offset: Int = 0) -> WideOutcome {
        machine.memory.withUnsafeBytes { ram.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
        load(machine, base: Self.guestBase + UInt64(Self.middle + offset))
        state.pointee.stop = 0
        guard let handler = i.pointee.handler else { return WideOutcome(machine: machine, exception: 0xFFFF) }
        let next = unsafeBitCast(handler, to: Handler.self)(state, i)
        var after = current(machine)
        after.memory = Array(UnsafeRawBufferPointer(start: ram, count: Self.memorySize))
        return WideOutcome(machine: after, exception: next == i + 1 ? nil : UInt64(state.pointee.exception_vector))
    }

    // MARK: Host

    /// VMOVUPS between a register and [R14 + 64 * number], as wide as the host's registers.
    private static func move(_ opcode: UInt8, _ number: UInt8) -> [UInt8] {
        let head: [UInt8] =
            hasAVX512
            ? [0x62, (~number & 8) << 4 | 0x40 | (~number & 16) | 1, 0x7C, 0x48]
            : [0xC4, (~number & 8) << 4 | 0x41, 0x7C]
        let place = UInt32(zmmOffset) + UInt32(number) * 64
        return head + [opcode, 0x86 | (number & 7) << 3] + IntegerEncoder.little(UInt64(place), 4)
    }

    private static func moveMask(_ opcode: UInt8, _ number: UInt8) -> [UInt8] {
        [0xC4, 0xC1, 0xF8, opcode, 0x86 | number << 3]
            + IntegerEncoder.little(UInt64(opmaskOffset) + UInt64(number) * 8, 4)
    }

    private static let registers = UInt8(hasAVX512 ? 32 : 16)
    private static let prologue: [UInt8] =
        (0..<registers).flatMap { move(0x10, $0) } + (hasAVX512 ? (0..<8).flatMap { moveMask(0x90, $0) } : [])
        + [0x41, 0x0F, 0xAE, 0x96] + IntegerEncoder.little(UInt64(mxcsrOffset), 4)
    private static let epilogue: [UInt8] =
        [0x41, 0x0F, 0xAE, 0x9E] + IntegerEncoder.little(UInt64(mxcsrOffset), 4)
        + [0x41, 0x0F, 0xAE, 0x96] + IntegerEncoder.little(UInt64(defaultMXCSROffset), 4)
        + (0..<registers).flatMap { move(0x11, $0) } + (hasAVX512 ? (0..<8).flatMap { moveMask(0x91, $0) } : [])
        + [0xC5, 0xF8, 0x77, 0xCC]

    private var context: UnsafeMutableRawPointer { region + Self.contextOffset }
    /// Where the host's side has its memory, and its address.
    var hostMemory: UnsafeMutableRawPointer { region + Self.dataOffset }
    var hostBase: UInt64 { UInt64(UInt(bitPattern: hostMemory)) }

    /// Writes the code for an instruction; its address.
    private func put(_ bytes: [UInt8]) -> UInt64 {
        let code = Self.prologue + bytes + Self.epilogue
        if codeUsed + code.count > Self.contextOffset { codeUsed = 0 }
        let place = region + codeUsed
        code.withUnsafeBytes { place.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
        codeUsed += (code.count + 63) & ~63
        return UInt64(UInt(bitPattern: place))
    }

    private func fillContext(_ machine: WideMachine) {
        machine.zmm.withUnsafeBytes { context.copyMemory(from: $0.baseAddress!, byteCount: 2048) }
        machine.opmask.withUnsafeBytes {
            (context + Self.opmaskOffset).copyMemory(from: $0.baseAddress!, byteCount: 64)
        }
        context.storeBytes(of: machine.mxcsr, toByteOffset: Self.mxcsrOffset, as: UInt32.self)
        context.storeBytes(of: 0x1F80, toByteOffset: Self.defaultMXCSROffset, as: UInt32.self)
    }

    private var lastCode: (bytes: [UInt8], address: UInt64) = ([], 0)

    /// The same on the host. R15 is `base`, or `offset` beyond the middle of the memory.
    func host(_ c: WideCase, _ machine: WideMachine, offset: Int = 0, base: UInt64? = nil) -> WideOutcome {
        if lastCode.bytes != c.bytes { lastCode = (c.bytes, put(c.bytes)) }
        fillContext(machine)
        machine.memory.withUnsafeBytes { hostMemory.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
        var registers = test_host_registers()
        let place = base ?? hostBase + UInt64(Self.middle + offset)
        withUnsafeMutableBytes(of: &registers.gpr) { bytes in
            for (number, value) in machine.gpr.enumerated() {
                bytes.storeBytes(of: value, toByteOffset: number * 8, as: UInt64.self)
            }
            bytes.storeBytes(of: place, toByteOffset: 7 * 8, as: UInt64.self)
            bytes.storeBytes(of: place, toByteOffset: 15 * 8, as: UInt64.self)
            bytes.storeBytes(of: UInt64(UInt(bitPattern: context)), toByteOffset: 14 * 8, as: UInt64.self)
        }
        registers.rip = lastCode.address
        registers.rflags = machine.flags | 0x202
        test_host_run(&registers, 0)
        var outcome = WideOutcome(machine: machine)
        outcome.address = registers.cr2
        if registers.vector != 3 {
            outcome.exception = registers.vector
            return outcome
        }
        takeContext(&outcome.machine, registers)
        return outcome
    }

    private func takeContext(_ machine: inout WideMachine, _ registers: test_host_registers) {
        withUnsafeBytes(of: registers.gpr) { bytes in
            for number in 0..<16 where ![4, 7, 14, 15].contains(number) {
                machine.gpr[number] = bytes.load(fromByteOffset: number * 8, as: UInt64.self)
            }
        }
        machine.flags = registers.rflags & VectorBench.statusFlags
        machine.mxcsr = context.load(fromByteOffset: Self.mxcsrOffset, as: UInt32.self)
        let zmm = UnsafeRawBufferPointer(start: context, count: 2048)
        machine.zmm.withUnsafeMutableBytes { $0.copyMemory(from: zmm) }
        machine.opmask = (0..<8).map { context.load(fromByteOffset: Self.opmaskOffset + $0 * 8, as: UInt64.self) }
        machine.memory = Array(UnsafeRawBufferPointer(start: hostMemory, count: Self.memorySize))
    }
}

extension Random {
    /// Any state in which all exceptions are masked.
    mutating func wideMachine() -> WideMachine {
        var machine = WideMachine()
        for number in 0..<16 {
            machine.gpr[number] = chance(2) ? UInt64(bitPattern: Int64(below(80)) - 20) : next()
        }
        machine.flags = next() & VectorBench.statusFlags
        machine.mxcsr = chance(2) ? 0x1F80 : (0x1F80 | UInt32(truncatingIfNeeded: next()) & 0xE07F)
        let count = WideBench.hasAVX512 ? 256 : 128
        for index in 0..<count where WideBench.hasAVX512 || index & 7 < 4 { machine.zmm[index] = lane() }
        if WideBench.hasAVX512 {
            for number in 0..<8 { machine.opmask[number] = chance(4) ? .max : next() }
        }
        for offset in stride(from: 0, to: WideBench.memorySize, by: 8) {
            let value = lane()
            for byte in 0..<8 { machine.memory[offset + byte] = UInt8(truncatingIfNeeded: value >> UInt64(byte * 8)) }
        }
        return machine
    }
}
