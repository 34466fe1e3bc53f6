internal import CHost
internal import Glibc
import Testing

@testable import CPU

/// Guests that work against whoever keeps what it has decoded and translated: they get slow, never wrong, and the
/// process stays small. Each has a process of its own, because memory is counted by process.
@Suite(.serialized) struct HostileGuestTests {
    @Test func codeThatRewritesItself() async {
        await #expect(processExitsWith: .success) { HostileGuest.rewriteItself() }
    }

    @Test func codeThatIsRewrittenThroughAnAlias() async {
        await #expect(processExitsWith: .success) { HostileGuest.rewriteThroughAnAlias() }
    }

    @Test func jumpsIntoTheMiddleOfInstructions() async {
        await #expect(processExitsWith: .success) { HostileGuest.jumpIntoInstructions() }
    }

    @Test func onePageAtManyAddresses() async {
        await #expect(processExitsWith: .success) { HostileGuest.mapOnePageOften() }
    }

    @Test func moreCodeThanTheCacheHolds() async {
        await #expect(processExitsWith: .success) { HostileGuest.fillTheCache() }
    }
}

private enum HostileGuest {
    private static let executions: [Execution] = [
        .interpreter, .translator(threshold: 1), .translator(threshold: 16), .lockstep(threshold: 1),
        .lockstep(threshold: 1, exactFlags: true),
    ]

    /// In pages, 128 MiB: code cache and tables of lockstep's two processors.
    private static let growthLimit = 128 << 8
    /// In pages, 72 MiB: those of one.
    private static let ownGrowthLimit = 72 << 8
    /// In pages, 32 MiB, with AddressSanitizer: freed memory that it holds back, and what it keeps beside all memory.
    private static let sanitizerAllowance = dlsym(nil, "__asan_init") == nil ? 0 : 32 << 8

    /// Runs from `start` to HLT on each way of executing and gives RAX to `look`.
    private static func check(
        size: Int = 1 << 20, start: UInt64 = Place.code, registers: [Int: UInt64] = [:],
        prepare: (TestMachine) -> Void, look: (TestMachine, UInt64) -> Void
    ) {
        for execution in executions {
            let machine = TestMachine(size: size)
            machine.processor.execution = execution
            machine.enterLong()
            prepare(machine)
            machine.forgetCode()
            machine.state.setRegister(0, 0)
            machine.state.setRegister(4, Place.userStack)
            for (number, value) in registers { machine.state.setRegister(number, value) }
            machine.state.pointee.rip = start
            let resident = residentPages()
            #expect(machine.runProcessor() == .halt, "\(execution)")
            look(machine, machine.state.register(0))
            #expect(machine.processor.checkLockstep())
            let limit = if case .lockstep = execution { growthLimit } else { ownGrowthLimit }
            let grown = residentPages() - resident
            #expect(grown < limit + sanitizerAllowance + size >> 11, "\(execution): \(grown >> 8) MiB")
        }
    }

    /// Each pass increments the immediate of the next instruction: code on the page of its own store.
    static func rewriteItself() {
        let code: [UInt8] = [
            0xFE, 0x05, 1, 0, 0, 0,  // inc byte [the immediate below]
            0xB2, 0,  // mov dl, 0
            0x0F, 0xB6, 0xD2,  // movzx edx, dl
            0x48, 0x01, 0xD0,  // add rax, rdx
            0xFF, 0xC9, 0x75, 0xEE,  // dec ecx; jnz
            0xF4,
        ]
        let passes: UInt64 = 30_000
        let sum = (1...passes).reduce(UInt64(0)) { $0 + $1 % 256 }
        check(registers: [1: passes], prepare: { $0.write(code, at: Place.code) }) { #expect($1 == sum) }
    }

    /// The same from another page, which the code is on as well: through another address.
    static func rewriteThroughAnAlias() {
        // inc byte [rbx]; call rsi; dec ecx; jnz; hlt. The callee: add rax, imm8; ret.
        let code: [UInt8] = [0xFE, 0x03, 0xFF, 0xD6, 0xFF, 0xC9, 0x75, 0xF8, 0xF4]
        let callee: [UInt8] = [0x48, 0x83, 0xC0, 0, 0xC3]
        let passes: UInt64 = 30_000
        let sum = (1...passes).reduce(UInt64(0)) { $0 &+ UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: $1))) }
        check(
            registers: [1: passes, 3: (1 << 39) + Pages.frame + 3, 6: Pages.frame],
            prepare: { machine in
                machine.write(code, at: Place.code)
                machine.write(callee, at: Pages.frame)
                // PML4 entry 1 as entry 0.
                machine.store(Place.tables + 0x1007, at: Place.tables + 8)
            }
        ) { #expect($1 == sum) }
    }

    /// A page whose bytes are instructions from each of their offsets: all are entered, over and over.
    static func jumpIntoInstructions() {
        // add eax, 0xC0FEC0FE has INC AL at two of its offsets; each of them goes on to the next ADD.
        let unit: [UInt8] = [0x05, 0xFE, 0xC0, 0xFE, 0xC0]
        let count = 100
        let offsets: [UInt64] = [0, 1, 3]
        var code: [UInt8] = []
        for _ in 0..<count { code += unit }
        code += [0xC3]
        // rbx: where to enter; called for each unit and each of the three offsets.
        let driver: [UInt8] = [
            0x48, 0x8B, 0x1E,  // mov rbx, [rsi]
            0x48, 0x83, 0xC6, 8,  // add rsi, 8
            0xFF, 0xD3,  // call rbx
            0xFF, 0xC9, 0x75, 0xF3,  // dec ecx; jnz
            0xF4,
        ]
        var entries: [UInt64] = []
        for unit in 0..<count { for offset in offsets { entries.append(UInt64(unit * 5) + offset) } }
        var expected: UInt32 = 0
        for entry in entries {
            // INC AL keeps the rest of EAX.
            func incrementByte() { expected = (expected & ~0xFF) | ((expected &+ 1) & 0xFF) }
            if entry % 5 == 1 { incrementByte() }
            if entry % 5 != 0 { incrementByte() }
            let rest = count - Int((entry + 4) / 5)
            expected = expected &+ UInt32(truncatingIfNeeded: rest) &* 0xC0FE_C0FE
        }
        check(
            registers: [1: UInt64(entries.count), 6: Place.data],
            prepare: { machine in
                machine.write(driver, at: Place.code)
                machine.write(code, at: Pages.frame)
                for (index, entry) in entries.enumerated() {
                    machine.store(Pages.frame + entry, at: Place.data + UInt64(index) * 8)
                }
            }
        ) { #expect($1 == UInt64(expected)) }
    }

    /// One page of code at 2¹⁸ addresses: 512 tables of 512 entries, all of them the same table.
    static func mapOnePageOften() {
        // call rbx; add rbx, 0x1000; dec ecx; jnz; hlt. The callee: lea rdx, [rip - 7]; add rax, rdx; ret.
        let code: [UInt8] = [0xFF, 0xD3, 0x48, 0x81, 0xC3, 0, 0x10, 0, 0, 0xFF, 0xC9, 0x75, 0xF3, 0xF4]
        let callee: [UInt8] = [0x48, 0x8D, 0x15, 0xF9, 0xFF, 0xFF, 0xFF, 0x48, 0x01, 0xD0, 0xC3]
        let count: UInt64 = 200_000
        let base: UInt64 = 1 << 39
        var expected: UInt64 = 0
        for page in 0..<count { expected = expected &+ base &+ page << 12 }
        check(
            registers: [1: count, 3: base],
            prepare: { machine in
                machine.write(code, at: Place.code)
                machine.write(callee, at: Pages.frame)
                machine.store(UInt64(0x2_0003), at: Place.tables + 8)
                for index in UInt64(0)..<512 {
                    machine.store(UInt64(0x2_1003), at: 0x2_0000 + index * 8)
                    machine.store(UInt64(0x2_2003), at: 0x2_1000 + index * 8)
                    machine.store(Pages.frame | 3, at: 0x2_2000 + index * 8)
                }
            }
        ) { #expect($1 == expected) }
    }

    /// More code than there is room for, passed through a few times.
    static func fillTheCache() {
        let size = 3 << 20
        let first: UInt64 = 1 << 20
        // A block of 16 bytes: add rax, imm32; xor rax, imm8; jmp to the next, twelve bytes and padding.
        let blockSize: UInt64 = 16
        let count = (UInt64(size) - first - 64) / blockSize
        var pass: (UInt64) -> UInt64 = { $0 }
        pass = { start in
            var value = start
            for block in 0..<count { value = (value &+ (block & 0x7FFF_FFFF)) ^ 0x55 }
            return value
        }
        check(
            size: size, start: first, registers: [1: 3],
            prepare: { machine in
                for block in 0..<count {
                    let address = first + block * blockSize
                    machine.write([0x48, 0x05], at: address)
                    machine.store(UInt32(truncatingIfNeeded: block), at: address + 2)
                    machine.write([0x48, 0x83, 0xF0, 0x55, 0xEB, 4], at: address + 6)
                }
                // dec ecx; jz to HLT; jmp to the first block
                let end = first + count * blockSize
                machine.write([0xFF, 0xC9, 0x74, 5, 0xE9], at: end)
                machine.store(UInt32(truncatingIfNeeded: first &- (end + 9)), at: end + 5)
                machine.write([0xF4], at: end + 9)
            }
        ) { machine, result in
            #expect(result == pass(pass(pass(0))))
            #expect(machine.state.pointee.cache_flushes > 0)
        }
    }
}
