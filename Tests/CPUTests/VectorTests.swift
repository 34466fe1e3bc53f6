internal import CHost
import Testing

@testable import CPU

/// Faults, unmasked exceptions and state: what running an instruction on the host cannot show.
@Suite struct VectorTests {
    private let bench = VectorBench()

    private func machine(_ lanes: [Int: UInt64] = [:], mxcsr: UInt32 = 0x1F80) -> VectorMachine {
        var machine = VectorMachine()
        machine.set(UInt16(0x37F), at: 0)
        machine.mxcsr = mxcsr
        machine.set(UInt32(0xFFFF), at: 28)
        for (offset, value) in lanes { machine.set(value, at: offset) }
        return machine
    }

    private static let movaps = VectorCase(opcode: 0x28)
    private static let movups = VectorCase(opcode: 0x10)
    private static let addps = VectorCase(opcode: 0x58)
    private static let addpsRegisters = VectorCase(opcode: 0x58, rm: 1)
    private static let pxor = VectorCase(prefix: 0x66, opcode: 0xEF, rm: 1)
    private static let pxorMMX = VectorCase(opcode: 0xEF, rm: 1)
    private static let pxorMMXMemory = VectorCase(opcode: 0xEF)
    private static let convert = VectorCase(opcode: 0x2A, rm: 1)
    private static let fadd = VectorCase(map: 0, opcode: 0xD8, rm: 1)
    private static let fldMemory = VectorCase(map: 0, opcode: 0xD9)
    private static let fnstcw = VectorCase(map: 0, opcode: 0xD9, reg: 7)
    private static let fxsave = VectorCase(opcode: 0xAE)
    private static let emms = VectorCase(opcode: 0x77, rm: 0)

    /// (instruction, with CR0.EM, with CR0.TS, without CR4.OSFXSR, with a pending x87 exception): SDM vol. 3A §12.1, §13.1.
    @Test(
        arguments: [
            (movaps, 6, 7, 6, nil), (movups, 6, 7, 6, nil), (addps, 6, 7, 6, nil), (addpsRegisters, 6, 7, 6, nil),
            (pxor, 6, 7, 6, nil), (pxorMMX, 6, 7, nil, 16), (pxorMMXMemory, 6, 7, nil, 16), (convert, 6, 7, 6, 16),
            (fadd, 7, 7, nil, 16), (fldMemory, 7, 7, nil, 16), (fnstcw, 7, 7, nil, nil), (fxsave, 7, 7, nil, nil),
            (emms, 6, 7, nil, 16),
        ] as [(VectorCase, UInt32?, UInt32?, UInt32?, UInt32?)])
    func availability(_ c: VectorCase, emulated: UInt32?, switched: UInt32?, noFXSR: UInt32?, pending: UInt32?) {
        let s = bench.state
        let (cr0, cr4) = (s.pointee.cr0, s.pointee.cr4)
        var start = machine()
        #expect(bench.engine(c, start).exception == nil)
        s.pointee.cr0 = cr0 | Control.emulation
        #expect(bench.engine(c, start).exception == emulated)
        s.pointee.cr0 = cr0 | Control.taskSwitched
        #expect(bench.engine(c, start).exception == switched)
        s.pointee.cr0 = cr0
        s.pointee.cr4 = cr4 & ~Control.fxsaveSupport
        #expect(bench.engine(c, start).exception == noFXSR)
        s.pointee.cr4 = cr4
        start.set(UInt16(0x37E), at: 0)
        start.set(UInt16(0x8081), at: 2)
        let outcome = bench.engine(c, start)
        #expect(outcome.exception == pending)
        if pending != nil { #expect(outcome.machine.image == start.image) }
    }

    /// SDM vol. 2 §2.4: exception classes of legacy SSE.
    @Test(
        arguments: [
            (movaps, 13), (movups, nil), (addps, 13), (VectorCase(prefix: 0xF3, opcode: 0x58), nil),
            (VectorCase(opcode: 0x29), 13), (VectorCase(prefix: 0x66, opcode: 0xE7), 13),
            (VectorCase(prefix: 0xF2, opcode: 0xF0), nil),
            (VectorCase(map: 3, prefix: 0x66, opcode: 0x63, immediate: 0), nil),
            (VectorCase(prefix: 0x66, opcode: 0x2C), 13), (fxsave, 13), (VectorCase(opcode: 0xAE, reg: 1), 13),
        ] as [(VectorCase, UInt32?)])
    func alignment(_ c: VectorCase, exception: UInt32?) {
        let start = machine()
        #expect(bench.engine(c, start, offset: 8).exception == exception)
        #expect(bench.engine(c, start, offset: 16).exception == nil)
    }

    private static let one: UInt64 = 0x3FF0_0000_0000_0000
    private static let tiny: UInt64 = 0x0010_0000_0000_0000
    private static let half: UInt64 = 0x3FE0_0000_0000_0000
    private static let huge: UInt64 = 0x7FEF_FFFF_FFFF_FFFF
    private static let signaling: UInt64 = 0x7FF0_0000_0000_0001

    /// (opcode, destination, source, exception to unmask, expected flags): all end in #XM with the destination as it was.
    @Test(
        arguments: [
            (0x5E, one, 0, 2, 0x04), (0x5E, 0, 0, 0, 0x01), (0x58, signaling, one, 0, 0x01), (0x58, one, 1, 1, 0x02),
            (0x59, huge, huge, 3, 0x28), (0x59, tiny, half, 4, 0x10), (0x5E, one, 0x4008_0000_0000_0000, 5, 0x20),
            (0x51, one, 0xBFF0_0000_0000_0000, 0, 0x01),
        ] as [(UInt8, UInt64, UInt64, UInt32, UInt32)])
    func unmaskedException(_ opcode: UInt8, _ destination: UInt64, _ source: UInt64, _ bit: UInt32, flags: UInt32) {
        let mxcsr: UInt32 = 0x1F80 & ~(0x80 << bit)
        let start = machine([160: destination, 176: source], mxcsr: mxcsr)
        let c = VectorCase(prefix: 0xF2, opcode: opcode, rm: 1)
        let outcome = bench.engine(c, start)
        #expect(outcome.exception == 19)
        #expect(outcome.machine.mxcsr == mxcsr | flags)
        #expect(outcome.machine.get(UInt64.self, at: 160) == destination)
        bench.state.pointee.cr4 &= ~Control.simdExceptions
        #expect(bench.engine(c, start).exception == 6)
        bench.state.pointee.cr4 |= Control.simdExceptions
        // The same with another exception unmasked completes.
        let other: UInt32 = bit == 2 ? 3 : 2
        let masked = bench.engine(c, machine([160: destination, 176: source], mxcsr: 0x1F80 & ~(0x80 << other)))
        #expect(masked.exception == nil)
        #expect(masked.machine.get(UInt64.self, at: 160) != destination || opcode == 0x58)
    }

    @Test func unmaskedExceptionKeepsFlagsAndRegisters() {
        var start = machine([160: Self.signaling, 176: Self.one], mxcsr: 0x1F00)
        start.flags = 0x891
        start.gpr[3] = 77
        let compare = bench.engine(VectorCase(prefix: 0x66, opcode: 0x2F, rm: 1), start)
        #expect(compare.exception == 19)
        #expect(compare.machine.flags == 0x891)
        let convert = bench.engine(VectorCase(prefix: 0xF2, opcode: 0x2D, reg: 3, rm: 0), start)
        #expect(convert.exception == 19)
        #expect(convert.machine.gpr[3] == 77)
    }

    @Test func reservedMXCSRBitsFault() {
        var start = machine()
        start.memory[2] = 1
        let outcome = bench.engine(VectorCase(opcode: 0xAE, reg: 2), start)
        #expect(outcome.exception == 13)
        #expect(outcome.machine.mxcsr == 0x1F80)
        start.memory[26] = 1
        #expect(bench.engine(VectorCase(opcode: 0xAE, reg: 1), start).exception == 13)
    }

    /// An operand that is not RAM leaves the inner loop before anything has changed.
    @Test(arguments: [
        movups, addps, fldMemory, fxsave, VectorCase(opcode: 0x11), VectorCase(opcode: 0x7F),
        VectorCase(map: 3, prefix: 0x66, opcode: 0x16, immediate: 0), VectorCase(map: 0, opcode: 0xDD, reg: 3),
        VectorCase(map: 0, opcode: 0xDD, reg: 6), VectorCase(map: 0, opcode: 0xDD, reg: 4),
        VectorCase(prefix: 0x66, opcode: 0xF7, rm: 1),
    ])
    func operandElsewhere(_ c: VectorCase) {
        var random = Random(seed: 9)
        var start = random.machine()
        start.set(UInt64.max, at: 176)
        start.set(UInt16(0x1800), at: 2)
        let i = bench.prepare(c)
        #expect(bench.bind(i))
        bench.load(start, offset: 0x10_0000)
        let before = bench.current(start)
        #expect(bench.execute(i) == nil)
        #expect(bench.state.pointee.stop != 0)
        #expect(bench.current(start) == before)
    }

    // MARK: x87

    /// An unmasked overflow keeps FSTP from storing and popping; the next waiting instruction sees it.
    @Test func unmaskedStore() {
        var start = machine([32: 0x8000_0000_0000_0000])
        start.set(UInt16(0x377), at: 0)  // overflow unmasked
        start.set(UInt16(0x7000), at: 40)
        start.image[4] = 1
        start.memory[0] = 0x5A
        let store = bench.engine(VectorCase(map: 0, opcode: 0xD9, reg: 3), start)
        #expect(store.exception == nil)
        #expect(store.machine.memory[0] == 0x5A)
        #expect(store.machine.image[4] == 1)
        #expect(store.machine.get(UInt16.self, at: 2) & 0x80 != 0)
        #expect(bench.engine(Self.fadd, store.machine).exception == 16)
        let fnclex = VectorCase(map: 0, opcode: 0xDB, reg: 4, rm: 2)
        let cleared = bench.engine(fnclex, store.machine)
        #expect(cleared.exception == nil)
        #expect(bench.engine(Self.fadd, cleared.machine).exception == nil)
    }

    /// FLDCW that unmasks a flag which is set makes it pending.
    @Test func unmaskingMakesPending() {
        var start = machine()
        start.set(UInt16(4), at: 2)
        start.memory[0] = 0x7B
        start.memory[1] = 0x03
        let outcome = bench.engine(VectorCase(map: 0, opcode: 0xD9, reg: 5), start)
        #expect(outcome.exception == nil)
        #expect(outcome.machine.get(UInt16.self, at: 2) == 0x8084)
    }

    @Test func pointersAreTheGuests() {
        var start = machine()
        start.image[4] = 0xFF
        let outcome = bench.engine(Self.fldMemory, start, offset: 24)
        #expect(outcome.machine.get(UInt64.self, at: 8) == 0x4040)
        #expect(outcome.machine.get(UInt64.self, at: 16) == VectorBench.guestBase + 24)
        #expect(outcome.machine.get(UInt16.self, at: 6) == 0x107)
        let save = bench.engine(VectorCase(map: 0, opcode: 0xD9, reg: 6), outcome.machine)
        #expect(save.machine.memory[12...15] == [0x40, 0x40, 0, 0])
        #expect(save.machine.memory[18...19] == [0x07, 0x01])
    }

    @Test func wait() {
        let i = bench.prepare(VectorCase(map: 0, opcode: 0x9B))
        let s = bench.state
        bench.load(machine(), offset: 0)
        #expect(waitHandler(s, i) == i + 1)
        s.pointee.cr0 |= Control.taskSwitched
        #expect(waitHandler(s, i) == i + 1)
        s.pointee.cr0 |= Control.monitorCoprocessor
        #expect(waitHandler(s, i) == nil)
        #expect(s.pointee.exception_vector == 7)
        s.pointee.cr0 &= ~(Control.taskSwitched | Control.monitorCoprocessor)
        s.x87StatusWord = 0x8080
        #expect(waitHandler(s, i) == nil)
        #expect(s.pointee.exception_vector == 16)
    }

    // MARK: State

    @Test func kvmFormat() {
        let s = bench.state
        var random = Random(seed: 5)
        for _ in 0..<50 {
            var start = random.machine()
            for register in 0..<8 { for byte in 10..<16 { start.image[32 + register * 16 + byte] = 0 } }
            bench.load(start, offset: 0)
            let fpu = s.kvmFPU
            #expect(fpu.mxcsr == start.mxcsr)
            #expect(fpu.ftwx == start.image[4])
            s.powerOnVectorState()
            #expect(s.kvmFPU.fcw == 0x37F && s.kvmFPU.mxcsr == 0x1F80 && s.kvmFPU.ftwx == 0)
            s.setKVMFPU(fpu)
            #expect(bench.current(start).image[0..<416] == start.image[0..<416])
        }
    }

    /// What user space sets is made loadable: no reserved MXCSR bit, ES as flags and masks say.
    @Test func hostileKVMFormat() {
        var fpu = kvm_fpu()
        fpu.mxcsr = .max
        fpu.fcw = 0
        fpu.fsw = 0x3F
        bench.state.setKVMFPU(fpu)
        #expect(bench.state.mxcsr == 0xFFFF)
        #expect(bench.state.x87StatusWord == 0x80BF)
        fpu.fcw = 0x37F
        fpu.fsw = 0x8080
        bench.state.setKVMFPU(fpu)
        #expect(bench.state.x87StatusWord == 0)
    }

    @Test func arenaIsBoundedAndShared() {
        let small = StubCache(capacity: 4096)
        let i = bench.prepare(Self.pxor)
        #expect(bindVector(i, stubs: small))
        let (link, used) = (i.pointee.link, small.usedBytes)
        #expect(bindVector(i, stubs: small))
        #expect(i.pointee.link == link && small.usedBytes == used)
        var refused = false
        for immediate in UInt8(0)...255 where !refused {
            let shuffle = bench.prepare(VectorCase(prefix: 0x66, opcode: 0x70, rm: 1, immediate: immediate))
            refused = !bindVector(shuffle, stubs: small)
        }
        #expect(refused)
        #expect(small.usedBytes <= 4096)
        small.reset()
        #expect(bindVector(bench.prepare(Self.pxor), stubs: small))
    }

    @Test func undefinedOpcodes() {
        let undefined: [(UInt8, UInt8, UInt8, UInt8)] = [
            (1, 0x0B, 0, 0xC0), (1, 0x71, 0, 0xC0), (1, 0x71, 0, 0x10), (1, 0x73, 0, 0xD8), (1, 0x12, 0x66, 0xC0),
            (1, 0xAE, 0xF3, 0x10), (2, 0x40, 0, 0xC0), (2, 0xFF, 0x66, 0xC0), (3, 0x44, 0, 0xC0), (0, 0xD9, 0, 0x08),
            (0, 0xD9, 0, 0xD1), (0, 0xDD, 0, 0x28), (0, 0xDB, 0, 0xE5), (4, 0x10, 0, 0xC0), (0, 0x90, 0, 0xC0),
        ]
        for (map, opcode, prefix, modrm) in undefined {
            let shape = vectorShape(map: map, opcode: opcode, prefix: prefix, modrm: modrm, rexW: false, is64: true)
            #expect(shape == nil, "map \(map) opcode \(opcode)")
        }
    }

    /// Any encoding, in any state, with any control bits: an exception or a next instruction, and the host goes on.
    @Test func randomEncodings() {
        var random = Random(seed: 42)
        let s = bench.state
        let (cr0, cr4) = (s.pointee.cr0, s.pointee.cr4)
        var executed = 0
        for _ in 0..<20_000 {
            let map = UInt8(random.below(5))
            let opcode = map == 0 ? UInt8(0xD8 + random.below(8)) : UInt8(truncatingIfNeeded: random.next())
            var c = VectorCase(map: map, opcode: opcode)
            c.prefix = random.pick([0, 0x66, 0xF2, 0xF3, 0x12])
            c.rexW = random.chance(4)
            c.reg = UInt8(random.below(16))
            c.rm = random.chance(2) ? nil : UInt8(random.below(16))
            c.isShort = random.chance(4)
            let shape = vectorShape(
                map: map, opcode: opcode, prefix: c.prefix, modrm: c.modrm, rexW: c.rexW, is64: true)
            guard let shape else { continue }
            if shape.hasImmediate { c.immediate = UInt8(truncatingIfNeeded: random.next()) }
            var start = random.machine()
            if random.chance(2) { start.mxcsr = UInt32(truncatingIfNeeded: random.next()) & 0xFFFF }
            if random.chance(2) { start.set(UInt16(truncatingIfNeeded: random.next()) & 0x1F3F | 0x40, at: 0) }
            s.pointee.cr0 = random.chance(8) ? cr0 | UInt64(random.below(16)) : cr0
            s.pointee.cr4 = random.chance(8) ? 0 : cr4
            let i = bench.prepare(c)
            #expect(bench.bind(i))
            bench.load(start, offset: random.below(200))
            s.summarizeX87Exceptions()
            s.pointee.stop = 0
            let next = bench.execute(i)
            #expect(next == i + 1 || s.pointee.stop == UInt32(MARTLET_STOP_EXCEPTION), "\(c)")
            executed += 1
        }
        s.pointee.cr0 = cr0
        s.pointee.cr4 = cr4
        #expect(executed > 1000)
    }

    @Test(arguments: [(UInt32(1), UInt32(0)), (7, 0), (7, 1)]) func featuresAreTheHosts(_ leaf: (UInt32, UInt32)) {
        let host = HostProcessor.leaf(leaf.0, leaf.1)
        for register in 0..<4 {
            let features = VectorUnit.features(leaf: leaf.0, subleaf: leaf.1, register: register)
            #expect(features & ~host[register] == 0, "register \(register)")
        }
    }

    @Test func baseFeatures() {
        #expect(VectorUnit.features(leaf: 1, register: 3) & 0x0780_0001 == 0x0780_0001)
        // AVX-512 F, DQ, CD, BW and VL: all or none.
        let wide: UInt32 = 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | 1 << 31
        let found = VectorUnit.features(leaf: 7, register: 1) & wide
        #expect(found == (VectorUnit.has(.avx512) ? wide : 0))
    }
}
