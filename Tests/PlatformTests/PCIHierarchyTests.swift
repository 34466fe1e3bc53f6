import DeviceModel
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
        let hierarchy = PCIHierarchy([1: Self.function(0x1111), 3: port])
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
        // Function 1 of none of them answers.
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
    @Test(arguments: 1...4 as ClosedRange<UInt64>)
    func randomAccesses(seed: UInt64) {
        var state = seed
        func next() -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return state >> 16
        }
        let widths: [AccessWidth] = [.byte, .word, .double, .quad]
        for _ in 0..<20_000 {
            let width = widths[Int(next() % 4)]
            let place = address(next() % 8, next() % 5, next() % 4096)
            _ = window.write(offset: place, width: width, value: next() & width.mask)
            _ = window.read(offset: place, width: width)
            _ = bridge.write(offset: next() % 9, width: width, value: next() & width.mask)
            _ = bridge.read(offset: next() % 9, width: width)
        }
        #expect(window.load(address(0, 0, 0), .double) == 0x29C0_8086)
        #expect(window.load(address(0, 3, 0x0E), .byte) == 1)
    }
}
