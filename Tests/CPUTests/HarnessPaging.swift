internal import CHost

@testable import CPU

/// Pages of a test's own in long mode, above the identity map.
enum Pages {
    /// Linear address of the first: PML4 entry 1.
    static let base: UInt64 = 0x80_0000_0000
    static let pointerTable: UInt64 = 0x2_0000
    static let directory: UInt64 = 0x2_1000
    static let table: UInt64 = 0x2_2000
    /// Guest-physical page frames that tests may map.
    static let frame: UInt64 = 0x3_0000
    /// A user-accessible alias of `Place.code`.
    static let userCode: UInt64 = base + 0x10_000

    static func address(_ page: UInt64) -> UInt64 { base + page * 4096 }
}

extension TestMachine {
    /// Long mode with supervisor pages below 1 GiB, and the tables for `Pages`, the alias of the code in place.
    func enterPagedLong() {
        enterLong(userFrom: .max)
        for table in [Pages.pointerTable, Pages.directory, Pages.table] {
            for index in UInt64(0)..<512 { store(UInt64(0), at: table + index * 8) }
        }
        store(Pages.pointerTable | 7, at: Place.tables + 8)
        store(Pages.directory | 7, at: Pages.pointerTable)
        store(Pages.table | 7, at: Pages.directory)
        map(16, to: Place.code, 7)
        map(17, to: Place.code + 4096, 7)
        state.pointee.cr4 |= 0x80
        processor.flushTLB()
    }

    /// Maps page number `page` of `Pages` and forgets what the TLB knew.
    func map(_ page: UInt64, to frame: UInt64, _ bits: UInt64) {
        store(frame | bits, at: Pages.table + page * 8)
        processor.flushTLB()
    }

    func entry(_ page: UInt64) -> UInt64 { load(Pages.table + page * 8) }

    /// Handlers on a stack of their own, for code whose RSP has no room for a frame.
    func useStackTable(for vectors: [UInt8]) {
        store(Place.kernelStack, at: Place.task + 36)
        for number in vectors {
            setGate(
                number, handler: Place.handlers + UInt64(number) * 16, selector: Selector.kernelCode64, rights: 0x8E,
                isLong: true, stackTable: 1)
        }
    }

    /// Executes `code` at `address` (placed at `Place.code`) with INT3 behind it.
    func execute(_ code: [UInt8], at address: UInt64 = Place.code, _ registers: [Int: UInt64] = [:]) -> Trapped? {
        write(code + [0xCC], at: Place.code)
        forgetCode()
        state.setRegister(4, Place.userStack)
        for (number, value) in registers { state.setRegister(number, value) }
        state.pointee.rip = address
        return run()
    }
}
