import Synchronization
import Testing

@testable import DeviceModel

private final class TestDevice: PCIDevice {
    let resets = Mutex(0)

    func readRegister(bar: Int, offset: UInt64, width: AccessWidth) -> ReadResult { .value(UInt64(bar) << 32 | offset) }
    func writeRegister(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult { .done }
    func resetFunction() { resets.withLock { $0 += 1 } }
}

private final class TestConnection: PCIConnection {
    let regions = Mutex<[PCIRegion]>([])
    let messages = Mutex<[PCIMessage]>([])
    let levels = Mutex<[Bool]>([])

    func decode(_ regions: [PCIRegion]) { self.regions.withLock { $0 = regions } }
    func setInterruptPin(_ level: Bool) { levels.withLock { $0.append(level) } }
    func send(_ message: PCIMessage, vector: Int) { messages.withLock { $0.append(message) } }
}

@Suite("PCI function") struct PCIFunctionTests {
    private let device = TestDevice()
    private let connection = TestConnection()
    private let function: PCIFunction

    init() {
        var description = PCIFunctionDescription(
            name: "test", vendorID: 0x1234, deviceID: 0x5678, classCode: 0x01_8000)
        description.bars = [
            PCIBaseAddress(index: 0, kind: .memory64, size: 0x1_0000, isPrefetchable: true),
            PCIBaseAddress(index: 2, kind: .memory32, size: 0x2000),
            PCIBaseAddress(index: 3, kind: .io, size: 32),
        ]
        description.msix = .init(vectorCount: 3, bar: 2, tableOffset: 0, pendingOffset: 0x1000)
        description.msiVectorCount = 4
        description.hasInterruptPin = true
        function = PCIFunction(description)
        function.connect(device, to: connection)
    }

    private func load(_ offset: Int, _ width: AccessWidth = .double) -> UInt64 {
        function.readConfiguration(at: offset, width: width)
    }

    private func store(_ value: UInt64, _ offset: Int, _ width: AccessWidth = .double) {
        function.writeConfiguration(value, at: offset, width: width)
    }

    private func capability(_ identifier: UInt64) throws -> Int {
        var offset = Int(load(0x34, .byte))
        while offset != 0, load(offset, .byte) != identifier { offset = Int(load(offset + 1, .byte)) }
        return try #require(offset == 0 ? nil : offset)
    }

    /// (register, all ones written, what it holds then): masks of the header, and the sizes of the base addresses.
    @Test(
        arguments: [
            (0x00, 0x5678_1234), (0x04, 0x0010_0547), (0x08, 0x0180_0000), (0x0C, 0x0000_00FF), (0x10, 0xFFFF_000C),
            (0x14, 0xFFFF_FFFF), (0x18, 0xFFFF_E000), (0x1C, 0xFFFF_FFE1), (0x20, 0), (0x24, 0), (0x28, 0), (0x2C, 0),
            (0x30, 0), (0x38, 0), (0x3C, 0x0000_01FF), (0x100, 0), (0xFFC, 0),
        ] as [(Int, UInt64)])
    func writableBits(register: Int, expected: UInt64) {
        store(0xFFFF_FFFF, register)
        #expect(load(register) == expected)
    }

    @Test func bytesAndWordsOfARegister() {
        store(0xAB, 0x3C, .byte)
        #expect(load(0x3C) == 0x1AB && load(0x3D, .byte) == 1 && load(0x3C, .word) == 0x1AB)
        #expect(load(0xFFF, .word) == 0xFFFF && load(5000, .byte) == 0xFF)
    }

    @Test func decodesWhatTheCommandAllows() {
        store(0x0000_0007, 0x14)
        store(0x8000_0000, 0x10)
        store(0xC000_0000, 0x18)
        store(0x2000, 0x1C)
        #expect(connection.regions.withLock { $0.isEmpty })
        store(2, 4, .word)
        #expect(connection.regions.withLock { $0.map(\.base) } == [0x7_8000_0000, 0xC000_0000])
        store(1, 4, .word)
        #expect(connection.regions.withLock { $0.map(\.base) } == [0x2000])
        #expect(connection.regions.withLock { $0.allSatisfy(\.isPortIO) })
        store(0, 4, .word)
        #expect(connection.regions.withLock { $0.isEmpty })
    }

    @Test func vectorsWaitWhileTheyAreMasked() throws {
        store(6, 4, .word)
        store(0xC000_0000, 0x18)
        let control = try capability(0x11) + 2
        let table = try #require(connection.regions.withLock { $0.last }?.device)
        function.signal(vector: 0)
        #expect(connection.messages.withLock { $0.isEmpty }, "not enabled")
        store(0xC000, control, .word)
        _ = table.write(offset: 0, width: .double, value: 0xFEE0_0003)
        _ = table.write(offset: 8, width: .double, value: 0x30)
        _ = table.write(offset: 12, width: .double, value: 0xFFFF_FFFE)
        #expect(
            table.read(offset: 0, width: .quad) == .value(0xFEE0_0000)
                && table.read(offset: 12, width: .double) == .value(0))
        function.signal(vector: 0)
        function.signal(vector: 1)
        function.signal(vector: 3)
        function.signal(vector: -1)
        #expect(table.read(offset: 0x1000, width: .quad) == .value(3), "the function mask holds them")
        store(0x8000, control, .word)
        #expect(connection.messages.withLock { $0 } == [PCIMessage(address: 0xFEE0_0000, data: 0x30)])
        #expect(table.read(offset: 0x1000, width: .double) == .value(2), "the vector's own mask")
        #expect(table.read(offset: 1, width: .byte) == .rejected(.wrongWidth))
        #expect(table.write(offset: 0x1000, width: .double, value: 0) == .done)
        #expect(table.read(offset: 0x1000, width: .double) == .value(2), "read-only")
        store(2, 4, .word)
        function.signal(vector: 0)
        #expect(connection.messages.withLock { $0.count } == 1, "no bus master")
    }

    /// PCIe 5.0 §6.1.4.
    @Test func messageSignalledInterrupts() throws {
        store(4, 4, .word)
        let base = try capability(0x05)
        #expect(load(base + 2, .word) == 0x0184)
        store(0xFEE0_1000, base + 4)
        store(0x47, base + 12, .word)
        store(0x21, base + 2, .word)
        for vector in 0..<5 { function.signal(vector: vector) }
        #expect(connection.messages.withLock { $0.map(\.data) } == [0x44, 0x45, 0x46, 0x47])
        connection.messages.withLock { $0 = [] }
        store(0x2, base + 16)
        function.signal(vector: 1)
        #expect(connection.messages.withLock { $0.isEmpty })
        store(0, base + 16)
        #expect(connection.messages.withLock { $0.map(\.data) } == [0x45])
        store(0x01, base + 2, .word)
        function.signal(vector: 3)
        #expect(connection.messages.withLock { $0.last?.data } == 0x47, "one vector: the data as it is")
    }

    @Test func interruptPin() throws {
        function.setInterruptPin(true)
        #expect(load(6, .word) & 8 != 0)
        store(0x400, 4, .word)
        store(0, 4, .word)
        store(0x8000, try capability(0x11) + 2, .word)
        function.setInterruptPin(false)
        #expect(connection.levels.withLock { $0 } == [true, false, true, false] && load(6, .word) & 8 == 0)
    }

    @Test func functionLevelReset() throws {
        store(7, 4, .word)
        store(0xC000_0000, 0x18)
        let control = try capability(0x10) + 8
        store(0x80, control + 1, .byte)
        #expect(device.resets.withLock { $0 } == 1)
        #expect(load(4, .word) == 0 && load(0x18) == 0 && connection.regions.withLock { $0.isEmpty })
        store(0x7FFF, control, .word)
        #expect(device.resets.withLock { $0 } == 1)
    }

    @Test func savedStateContinues() throws {
        store(6, 4, .word)
        store(0xC000_0000, 0x18)
        store(0x8000, try capability(0x11) + 2, .word)
        function.signal(vector: 2)
        let state = function.save()
        let restored = PCIFunction(function.description)
        try restored.restore(PCIFunctionSavedState(encoded: state.encoded()))
        let other = TestConnection()
        restored.connect(TestDevice(), to: other)
        #expect(restored.save() == state)
        #expect(other.regions.withLock { $0.map(\.base) } == [0, 0xC000_0000])
        let table = try #require(other.regions.withLock { $0.last }?.device)
        #expect(table.read(offset: 0x1000, width: .double) == .value(4))
    }
}

@Suite("Dynamic bus") struct DynamicBusTests {
    private final class Named: BusDevice {
        let value: UInt64
        init(_ value: UInt64) { self.value = value }
        func read(offset: UInt64, width: AccessWidth) -> ReadResult { .value(value) }
        func write(offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult { .done }
    }

    private func claim(_ owner: Int, _ base: UInt64, _ size: UInt64 = 0x100) -> DynamicBus.Claim {
        .init(owner: owner, name: "\(owner)", base: base, size: size, device: Named(UInt64(owner)))
    }

    @Test func firstComeFirstServedInsideTheWindows() throws {
        var fixed = Bus()
        try fixed.attach(Named(9), named: "fixed", at: 0x1800, size: 0x100)
        let bus = DynamicBus(fixed: fixed, windows: [0x1000..<0x2000, 0x4000..<0x5000])
        var reader = BusReader(bus)
        func at(_ address: UInt64) -> UInt64 { reader.current().read(at: address, width: .byte) }
        bus.setClaims([claim(1, 0x1000), claim(1, 0x3000), claim(1, 0x1F80), claim(1, .max - 0x7F)], of: 1)
        bus.setClaims([claim(2, 0x1080), claim(2, 0x1880), claim(2, 0x4000)], of: 2)
        #expect(at(0x1000) == 1 && at(0x10FF) == 1 && at(0x1100) == 0xFF, "1 was there first")
        #expect(at(0x3000) == 0xFF && at(0x1F80) == 0xFF && at(.max) == 0xFF, "outside of the windows")
        #expect(at(0x1880) == 9 && at(0x1900) == 0xFF, "fixed devices stay")
        #expect(at(0x4000) == 2)
        // The second one comes into effect when the first goes, and then it was there first.
        bus.setClaims([], of: 1)
        #expect(at(0x1080) == 2 && at(0x1000) == 0xFF)
        bus.setClaims([claim(1, 0x1000)], of: 1)
        #expect(at(0x1080) == 2 && at(0x1000) == 0xFF)
    }

    @Test func claimsThatStayKeepTheirPlace() {
        let bus = DynamicBus(fixed: Bus(), windows: [0..<0x1000])
        bus.setClaims([claim(1, 0)], of: 1)
        bus.setClaims([claim(2, 0x80)], of: 2)
        let effective = bus.setClaims([claim(1, 0), claim(1, 0x400)], of: 1)
        #expect(effective.map(\.base) == [0, 0x400])
    }
}
