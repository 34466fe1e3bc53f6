import DeviceModel
import Fuzzing
import Testing

@testable import Platform

@Suite struct PCIHierarchyTests {
    /// A function that is nothing but its configuration space.
    private final class Plain: PCIDevice {
        func readRegister(bar: Int, offset: UInt64, width: AccessWidth) -> ReadResult { .rejected(.noSuchRegister) }
        func writeRegister(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult { .done }
        func resetFunction() {}
    }

    private static func function(_ deviceID: UInt16) -> PCIFunction {
        var description = PCIFunctionDescription(
            name: "plain", vendorID: 0x1AF4, deviceID: deviceID, classCode: 0xFF_0000)
        description.bars = [PCIBaseAddress(index: 0, kind: .memory32, size: 0x1000)]
        return PCIFunction(description)
    }

    private let child = function(0x2222)
    private let resets = Recorder<Bool>()
    private let bridge: PCIHostBridge
    private let window: PCIExpressWindow
    private let port: PCIRootPort

    init() {
        let resets = resets
        port = PCIRootPort(slotNumber: 3, child: child) { resets.append(true) }
        let further = PCIRootPort(slotNumber: 4, isMultifunction: true, child: Self.function(0x3333))
        let hierarchy = PCIHierarchy([
            PCIAddress(device: 1): Self.function(0x1111), PCIAddress(device: 3): port,
            PCIAddress(device: 4): PCIRootPort(slotNumber: 5, isMultifunction: true, child: nil),
            PCIAddress(device: 4, function: 7): further,
        ])
        bridge = PCIHostBridge(hierarchy: hierarchy) {}
        window = PCIExpressWindow(hierarchy)
    }

    private func address(_ bus: UInt64, _ device: UInt64, _ register: UInt64) -> UInt64 {
        bus << 20 | device << 15 | register
    }

    /// Both mechanisms see the same functions.
    @Test(
        arguments: [
            (0, 0, 0, 0x29C0_8086), (0, 1, 0, 0x1111_1AF4), (0, 2, 0, 0xFFFF_FFFF), (0, 3, 8, 0x0604_0000),
            (0, 3, 0x0C, 0x0001_0000), (1, 0, 0, 0xFFFF_FFFF), (0xFF, 0, 0, 0xFFFF_FFFF),
        ] as [(UInt64, UInt64, UInt64, UInt64)])
    func functions(bus: UInt64, device: UInt64, register: UInt64, expected: UInt64) {
        bridge.store(0x8000_0000 | bus << 16 | device << 11 | register, 0, .double)
        #expect(bridge.load(4, .double) == expected)
        #expect(window.load(address(bus, device, register), .double) == expected)
        // Function 1 of none of these answers.
        #expect(window.load(address(bus, device, 1 << 12), .double) == 0xFFFF_FFFF)
    }

    @Test func behindARootPort() {
        window.store(0x00_0505_00, address(0, 3, 0x18), .double)
        #expect(window.load(address(5, 0, 0), .double) == 0x2222_1AF4)
        #expect(window.load(address(5, 1, 0), .double) == 0xFFFF_FFFF, "a link has one device")
        window.store(0xFFFF_FFFF, address(5, 0, 0x10), .double)
        #expect(window.load(address(5, 0, 0x10), .double) == 0xFFFF_F000)
        window.store(0x40, address(0, 3, 0x3E), .word)
        window.store(0x40, address(0, 3, 0x3E), .word)
        #expect(resets.count == 1, "on the rising edge")
    }

    @Test func severalPortsInASlot() {
        #expect(window.load(address(0, 4, 0x0E), .byte) == 0x81)
        #expect(window.load(address(0, 4, 7 << 12 | 0x0E), .byte) == 0x81)
        #expect(window.load(address(0, 4, 1 << 12), .double) == 0xFFFF_FFFF)
        window.store(0x00_0707_00, address(0, 4, 7 << 12 | 0x18), .double)
        #expect(window.load(address(7, 0, 0), .double) == 0x3333_1AF4)
        #expect(window.load(address(7, 0, 1 << 12), .double) == 0xFFFF_FFFF, "it has one function")
    }

    /// What reaches the board.
    private final class Board: PCIConnection {
        let decoded = Recorder<[UInt64]>()
        let messages = Recorder<Int>()
        let levels = Recorder<Bool>()
        func decode(_ regions: [PCIRegion]) { decoded.append(regions.map(\.base)) }
        func setInterruptPin(_ level: Bool) { levels.append(level) }
        func send(_ message: PCIMessage, vector: Int) { messages.append(vector) }
    }

    /// The only connection of a function is by way of its port.
    @Test func windows() {
        let board = Board()
        child.connect(Plain(), to: port.connection(to: board))
        window.store(0x00_0505_00, address(0, 3, 0x18), .double)
        window.store(2, address(5, 0, 4), .word)
        #expect(board.decoded.values.last == [], "no address, and a closed window")
        window.store(0xC012_3000, address(5, 0, 0x10), .double)
        #expect(board.decoded.values.last == [])
        window.store(0xC010_C010, address(0, 3, 0x20), .double)
        #expect(board.decoded.values.last == [], "the port's memory space is off")
        window.store(2, address(0, 3, 4), .word)
        #expect(board.decoded.values.last == [0xC012_3000])
        for base in [0xC00F_F000, 0xC020_0000] as [UInt64] {
            window.store(base, address(5, 0, 0x10), .double)
            #expect(board.decoded.values.last == [], "\(base) is beside the window")
        }
        window.store(0xC01F_F000, address(5, 0, 0x10), .double)
        #expect(board.decoded.values.last == [0xC01F_F000])
        window.store(0xC000_C010, address(0, 3, 0x20), .double)
        #expect(board.decoded.values.last == [], "the limit is below the base")
        // The prefetchable window, whose upper halves have registers of their own.
        window.store(0xC011_C011, address(0, 3, 0x24), .double)
        #expect(board.decoded.values.last == [0xC01F_F000])
        window.store(1, address(0, 3, 0x28), .double)
        #expect(board.decoded.values.last == [])
        port.assign(bus: 9, memory: 0xC010_0000..<0xC030_0000)
        #expect(window.load(address(0, 3, 0x20), .double) == 0xC020_C010)
        #expect(window.load(address(9, 0, 0), .double) == 0x2222_1AF4)
    }

    @Test func messagesNeedTheMastersBit() {
        let board = Board()
        let downstream = port.connection(to: board)
        let message = PCIMessage(address: 0xFEE0_0000, data: 1)
        downstream.send(message, vector: 1)
        window.store(4, address(0, 3, 4), .word)
        downstream.send(message, vector: 2)
        downstream.setInterruptPin(true)
        #expect(board.messages.values == [2] && board.levels.values == [true])
        port.disconnect()
        downstream.send(message, vector: 3)
        #expect(board.messages.values == [2])
    }

    @Test func quadAccessesAreTwo() {
        #expect(window.load(address(0, 0, 0), .quad) == 0x29C0_8086)
        #expect(window.load(address(0, 1, 0), .quad) == 0x0010_0000_1111_1AF4)
        #expect(window.read(offset: 1, width: .word) == .rejected(.unaligned))
    }

    @Test func rootPortsStateContinues() throws {
        window.store(0x0009_0900, address(0, 3, 0x18), .double)
        let saved = try PCIRootPortSavedState(encoded: port.save().encoded())
        let restored = try PCIRootPort(restoring: saved, slotNumber: 3, child: child)
        #expect(restored.secondaryBus == 9 && restored.save() == saved)
    }

    /// Whatever is written where, nothing traps and read-only registers stay.
    @Test func randomAccesses() {
        let widths: [AccessWidth] = [.byte, .word, .double, .quad]
        child.connect(Plain(), to: port.connection(to: Board()))
        // They keep each other.
        defer { child.disconnect() }
        for seed in FuzzSeeds(count: 4) {
            var random = SeededGenerator(seed: seed)
            for _ in 0..<20_000 {
                let width = widths[Int(random.next() % 4)]
                let place = address(random.next() % 8, random.next() % 5, random.next() % 4096)
                _ = window.write(offset: place, width: width, value: random.next() & width.mask)
                _ = window.read(offset: place, width: width)
                _ = bridge.write(offset: random.next() % 9, width: width, value: random.next() & width.mask)
                _ = bridge.read(offset: random.next() % 9, width: width)
            }
            #expect(window.load(address(0, 0, 0), .double) == 0x29C0_8086)
            #expect(window.load(address(0, 3, 0x0E), .byte) == 1)
        }
    }
}
