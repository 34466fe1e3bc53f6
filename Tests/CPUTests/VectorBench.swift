internal import CHost
internal import Glibc

@testable import CPU

/// A seeded generator (SplitMix64), so that a failure names its case.
struct Random {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
        return value ^ (value >> 31)
    }

    mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
    mutating func pick<T>(_ values: [T]) -> T { values[below(values.count)] }
    mutating func chance(_ oneIn: Int) -> Bool { below(oneIn) == 0 }
}

/// One instruction in 64-bit mode. Memory forms address [R15]; MASKMOV goes to [RDI].
struct VectorCase: CustomStringConvertible {
    var map: UInt8 = 1
    var prefix: UInt8 = 0
    var opcode: UInt8
    var rexW = false
    /// Register number or opcode extension.
    var reg: UInt8 = 0
    /// Nil: memory.
    var rm: UInt8?
    var immediate: UInt8?
    /// 66 on an x87 instruction.
    var isShort = false

    var modrm: UInt8 { (rm == nil ? 7 : 0xC0 | (rm ?? 0) & 7) | (reg & 7) << 3 }
    var rex: UInt8 {
        let bits = (rexW ? 8 : 0) | (reg & 8) >> 1 | (rm == nil ? 1 : ((rm ?? 0) & 8) >> 3)
        return bits == 0 ? 0 : 0x40 | bits
    }

    var bytes: [UInt8] {
        var bytes: [UInt8] = []
        if isShort { bytes.append(0x66) }
        if prefix != 0 { bytes.append(prefix) }
        if rex != 0 { bytes.append(rex) }
        if map > 0 { bytes.append(0x0F) }
        if map == 2 { bytes.append(0x38) }
        if map == 3 { bytes.append(0x3A) }
        bytes.append(opcode)
        if map != 1 || opcode != 0x77 { bytes.append(modrm) }  // EMMS has no ModRM
        if let immediate { bytes.append(immediate) }
        return bytes
    }

    var description: String {
        bytes.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined(separator: " ")
    }
}

/// Everything that an instruction can see and change.
struct VectorMachine: Equatable {
    var gpr = [UInt64](repeating: 0, count: 16)
    var flags: UInt64 = 0
    var image = [UInt8](repeating: 0, count: 512)
    var memory = [UInt8](repeating: 0, count: VectorBench.memorySize)

    mutating func set<T: FixedWidthInteger>(_ value: T, at offset: Int) {
        for index in 0..<MemoryLayout<T>.size {
            image[offset + index] = UInt8(truncatingIfNeeded: value >> T(index * 8))
        }
    }

    func get<T: FixedWidthInteger>(_ type: T.Type = T.self, at offset: Int) -> T {
        var value: T = 0
        for index in (0..<MemoryLayout<T>.size).reversed() { value = value << 8 | T(image[offset + index]) }
        return value
    }

    var mxcsr: UInt32 {
        get { get(at: 24) }
        set { set(newValue, at: 24) }
    }
}

/// How an instruction of the engine ended.
struct VectorOutcome {
    var machine: VectorMachine
    /// Nil: it completed.
    var exception: UInt32?
}

/// Runs single instructions on the engine and, natively, on the host's processor.
final class VectorBench {
    static let memorySize = 256
    static let guestBase: UInt64 = 0x10_0000
    static let statusFlags: UInt64 = 0x8D5

    let processor = Processor(apicID: 0)
    let stubs = StubCache()
    let ram: UnsafeMutableRawPointer
    private let insn: Insn
    private let context: UnsafeMutableRawPointer
    private let hostMemory: UnsafeMutableRawPointer
    private let codeSize = 8 << 20
    private var writable: UnsafeMutableRawPointer?
    private var executable: UnsafeMutableRawPointer?
    private var codeUsed = 0

    var state: State { processor.state }

    init() {
        ram = .allocate(byteCount: 8192, alignment: 4096)
        ram.initializeMemory(as: UInt8.self, repeating: 0, count: 8192)
        context = .allocate(byteCount: 1024, alignment: 64)
        context.initializeMemory(as: UInt8.self, repeating: 0, count: 1024)
        hostMemory = .allocate(byteCount: Self.memorySize, alignment: 64)
        insn = .allocate(capacity: 2)
        insn.initialize(repeating: martlet_insn(), count: 2)
        precondition(martlet_map_code(codeSize, &writable, &executable) == 0, "no executable memory")
        var slot = martlet_slot()
        slot.guest_physical = Self.guestBase
        slot.size = 8192
        slot.host = ram.assumingMemoryBound(to: UInt8.self)
        processor.setSlots([slot])
        let s = state
        s.pointee.mode = CodeMode.bits64
        s.pointee.cr0 = Control.protectionEnable | Control.numericError
        s.pointee.cr4 = Control.fxsaveSupport | Control.simdExceptions
        s.setRegister(Int(MARTLET_ZERO_REGISTER), 0)
        s.setRegister(Int(MARTLET_PAGE_RIP_REGISTER), 0x4000)
        s.powerOnVectorState()
    }

    deinit {
        if let writable, let executable { martlet_unmap_code(codeSize, writable, executable) }
        ram.deallocate()
        context.deallocate()
        hostMemory.deallocate()
        insn.deallocate()
    }

    /// The decoder's part: the instruction with its operand address.
    func prepare(_ c: VectorCase, base: UInt8 = 15) -> Insn {
        var i = martlet_insn()
        i.map = c.map
        i.opcode = c.opcode
        i.modrm = c.modrm
        i.rex = c.rex
        i.prefixes = c.prefix
        i.immediate = UInt64(c.immediate ?? 0)
        i.base = base * 8
        i.index = UInt8(MARTLET_ZERO_REGISTER * 8)
        i.segment = UInt8(SegmentRegister.ds)
        i.address_size = 8
        i.size = c.rexW ? 8 : (c.isShort ? 2 : 4)
        i.flags = c.rm == nil ? InsnFlag.memory : 0
        i.reg = (c.reg & 15) * 8
        i.rm = (c.rm ?? 0) * 8
        i.length = UInt8(c.bytes.count)
        i.page_offset = 0x40
        insn.pointee = i
        return insn
    }

    /// Binds; a full arena is reset, as the decoder does it.
    func bind(_ i: Insn) -> Bool {
        if bindVector(i, stubs: stubs) { return true }
        stubs.reset()
        return bindVector(i, stubs: stubs)
    }

    func execute(_ i: Insn) -> Insn? {
        guard let handler = i.pointee.handler else { return nil }
        return unsafeBitCast(handler, to: Handler.self)(state, i)
    }

    func load(_ machine: VectorMachine, offset: Int) {
        let s = state
        for number in 0..<16 { s.setRegister(number, machine.gpr[number]) }
        s.setRegister(15, Self.guestBase + UInt64(offset))
        s.setRegister(7, Self.guestBase + UInt64(offset))
        s.setFlags(machine.flags)
        machine.image.withUnsafeBytes {
            s.fxImage.copyMemory(from: $0.baseAddress!, byteCount: FXImage.xmmRegisters)
            s.loadXMMRegisters(from: $0.baseAddress! + FXImage.xmmRegisters)
        }
        machine.memory.withUnsafeBytes { ram.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
    }

    /// The state after an instruction, in the form that `native` gives.
    func current(_ before: VectorMachine) -> VectorMachine {
        let s = state
        var after = before
        for number in 0..<16 where number != 7 && number != 15 { after.gpr[number] = s.register(number) }
        after.flags = s.flags & Self.statusFlags
        after.image = Array(UnsafeRawBufferPointer(start: s.fxImage, count: 512))
        after.image.withUnsafeMutableBytes { s.storeXMMRegisters(to: $0.baseAddress! + FXImage.xmmRegisters) }
        after.memory = Array(UnsafeRawBufferPointer(start: ram, count: Self.memorySize))
        return after
    }

    /// One instruction on the engine; its memory operand is `offset` bytes into the memory.
    func engine(_ c: VectorCase, _ machine: VectorMachine, offset: Int = 0) -> VectorOutcome {
        let i = prepare(c)
        guard bind(i) else { return VectorOutcome(machine: machine, exception: 0xFFFF) }
        load(machine, offset: offset)
        state.pointee.stop = 0
        if execute(i) == i + 1 { return VectorOutcome(machine: current(machine), exception: nil) }
        return VectorOutcome(machine: current(machine), exception: state.pointee.exception_vector)
    }

    // MARK: Native

    private static let flagsOffset = 128
    private static let mxcsrOffset = 136
    private static let imageOffset = 192

    /// Generates a function that takes the context, loads it, executes `bytes` and stores it.
    private func snippet(_ bytes: [UInt8]) -> UnsafeMutableRawPointer? {
        guard let writable, let executable else { return nil }
        var code: [UInt8] = [0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57]  // push rbx rbp r12–r15
        code += [0x49, 0x89, 0xFE]  // mov r14, rdi
        code += [0x41, 0x0F, 0xAE, 0x9E, 136, 0, 0, 0]  // stmxcsr [r14 + 136]
        code += [0x49, 0x0F, 0xAE, 0x8E, 192, 0, 0, 0]  // fxrstor64 [r14 + 192]
        code += [0x41, 0xFF, 0xB6, 128, 0, 0, 0, 0x9D]  // push [r14 + 128]; popfq
        for number: UInt8 in 0..<16 where number != 4 && number != 14 {
            // mov register, [r14 + 8 * number]
            code += [number < 8 ? 0x49 : 0x4D, 0x8B, 0x46 | (number & 7) << 3, number * 8]
        }
        code += bytes
        for number: UInt8 in 0..<16 where number != 4 && number != 14 {
            code += [number < 8 ? 0x49 : 0x4D, 0x89, 0x46 | (number & 7) << 3, number * 8]
        }
        code += [0x9C, 0x41, 0x8F, 0x86, 128, 0, 0, 0]  // pushfq; pop [r14 + 128]
        code += [0x49, 0x0F, 0xAE, 0x86, 192, 0, 0, 0]  // fxsave64 [r14 + 192]
        code += [0xDB, 0xE3, 0x41, 0x0F, 0xAE, 0x96, 136, 0, 0, 0]  // fninit; ldmxcsr [r14 + 136]
        code += [0x41, 0x5F, 0x41, 0x5E, 0x41, 0x5D, 0x41, 0x5C, 0x5D, 0x5B, 0xC3]
        guard codeUsed + code.count <= codeSize else { return nil }
        code.withUnsafeBytes { (writable + codeUsed).copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
        defer { codeUsed = (codeUsed + code.count + 63) & ~63 }
        return executable + codeUsed
    }

    /// Prepares the instruction for the host's processor. Every exception must be masked in the machines it then runs on.
    func native(_ c: VectorCase) -> ((VectorMachine, Int) -> VectorMachine)? {
        guard let code = snippet(c.bytes) else { return nil }
        let function = unsafeBitCast(code, to: (@convention(c) (UnsafeMutableRawPointer) -> Void).self)
        return { machine, offset in
            for (number, value) in machine.gpr.enumerated() {
                self.context.storeBytes(of: value, toByteOffset: number * 8, as: UInt64.self)
            }
            let operand = UInt64(UInt(bitPattern: self.hostMemory)) + UInt64(offset)
            self.context.storeBytes(of: operand, toByteOffset: 15 * 8, as: UInt64.self)
            self.context.storeBytes(of: operand, toByteOffset: 7 * 8, as: UInt64.self)
            self.context.storeBytes(of: machine.flags | 0x202, toByteOffset: Self.flagsOffset, as: UInt64.self)
            machine.image.withUnsafeBytes {
                (self.context + Self.imageOffset).copyMemory(from: $0.baseAddress!, byteCount: 512)
            }
            machine.memory.withUnsafeBytes { self.hostMemory.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
            function(self.context)
            var after = machine
            for number in 0..<16 where number != 7 && number != 15 {
                after.gpr[number] = self.context.load(fromByteOffset: number * 8, as: UInt64.self)
            }
            after.flags = self.context.load(fromByteOffset: Self.flagsOffset, as: UInt64.self) & Self.statusFlags
            after.image = Array(UnsafeRawBufferPointer(start: self.context + Self.imageOffset, count: 512))
            after.memory = Array(UnsafeRawBufferPointer(start: self.hostMemory, count: Self.memorySize))
            return after
        }
    }
}
