import DeviceModel
import Fuzzing
import Testing

@testable import Platform

/// Saved states of the board's devices that were meddled with: refused, or a device that can be used and saved again.
@Suite struct SavedStateFuzzTests {
    private final class Plain: PCIDevice {
        func readRegister(bar: Int, offset: UInt64, width: AccessWidth) -> ReadResult { .rejected(.noSuchRegister) }
        func writeRegister(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult { .done }
        func resetFunction() {}
    }

    private final class Connection: PCIConnection {
        func decode(_ regions: [PCIRegion]) {
            #expect(regions.allSatisfy { $0.size > 0 && $0.base <= UInt64.max - ($0.size - 1) })
        }
        func setInterruptPin(_ level: Bool) {}
        func send(_ message: PCIMessage, vector: Int) {}
    }

    private let line = RecordingLine()

    private func endure<Device: SavableDevice & BusDevice>(
        _ device: Device, _ seed: UInt64, restore: (Device.SavedState) throws -> Device
    ) throws {
        var random = SeededGenerator(seed: seed)
        #expect(device.endureRandomAccesses(seed: seed, count: 100))
        for _ in 0..<20 {
            let bytes = Damage.done(to: device.save().encoded(), behind: 4, using: &random)
            guard let state = try? Device.SavedState(encoded: bytes), let restored = try? restore(state) else {
                continue
            }
            #expect(restored.endureRandomAccesses(seed: random.next(), count: 100), "seed \(seed)")
            let again = restored.save()
            #expect(try Device.SavedState(encoded: again.encoded()) == again, "seed \(seed)")
        }
    }

    private static func function() -> PCIFunction {
        var description = PCIFunctionDescription(
            name: "plain", vendorID: 0x1AF4, deviceID: 0x1234, classCode: 0xFF_0000)
        description.bars = [
            PCIBaseAddress(index: 0, kind: .memory64, size: 0x1_0000),
            PCIBaseAddress(index: 2, kind: .memory32, size: 0x2000), PCIBaseAddress(index: 3, kind: .io, size: 32),
        ]
        description.msix = .init(vectorCount: 3, bar: 2, tableOffset: 0, pendingOffset: 0x1000)
        description.msiVectorCount = 4
        description.hasInterruptPin = true
        return PCIFunction(description)
    }

    private func endureFunction(_ seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        let widths: [AccessWidth] = [.byte, .word, .double]
        let function = Self.function()
        func use(_ function: PCIFunction) {
            for _ in 0..<100 {
                let width = widths[Int(random.next() % 3)]
                let offset = Int(random.next() % (random.next() % 2 == 0 ? 0x100 : 0x1000))
                function.writeConfiguration(random.next() & width.mask, at: offset, width: width)
                _ = function.readConfiguration(at: offset, width: width)
                function.signal(vector: Int(random.next() % 5))
                function.setInterruptPin(random.next() % 2 == 0)
            }
        }
        function.connect(Plain(), to: Connection())
        use(function)
        for _ in 0..<20 {
            let bytes = Damage.done(to: function.save().encoded(), behind: 4, using: &random)
            guard let state = try? PCIFunctionSavedState(encoded: bytes) else { continue }
            let restored = Self.function()
            guard (try? restored.restore(state)) != nil else { continue }
            restored.connect(Plain(), to: Connection())
            use(restored)
            #expect(try PCIFunctionSavedState(encoded: restored.save().encoded()) == restored.save(), "seed \(seed)")
            restored.disconnect()
        }
        function.disconnect()
    }

    @Test func randomStates() throws {
        let clock = TestClock(.seconds(1_709_211_909))
        let timer = RecordingTimer()
        let layout = try PhysicalMemoryMap(memorySize: 4 << 20)
        let memory = try makeMemory(layout)
        let contents = FirmwareConfiguration.Contents(
            layout: layout, cpuCount: 3, initrd: [9, 8, 7], commandLine: "quiet",
            files: [FirmwareFile(name: "opt/test", bytes: [1, 2, 3, 4])])
        for seed in FuzzSeeds(count: 4) {
            let sink = RecordingSink()
            try endure(UART16550(line: line, sink: sink), seed) {
                try UART16550(restoring: $0, line: line, sink: sink)
            }
            try endure(CMOSRTC(layout: layout, line: line, wallClock: { clock.now }, timer: timer), seed) {
                try CMOSRTC(restoring: $0, layout: layout, line: line, wallClock: { clock.now }, timer: timer)
            }
            try endure(I8042(line: line, onReset: {}), seed) { try I8042(restoring: $0, line: line, onReset: {}) }
            try endure(
                ACPIPowerManagement(sciLine: line, monotonicClock: { clock.now }, onPowerOff: {}), seed
            ) {
                try ACPIPowerManagement(restoring: $0, sciLine: line, monotonicClock: { clock.now }, onPowerOff: {})
            }
            try endure(FirmwareConfiguration(memory: memory, contents: contents), seed) {
                FirmwareConfiguration(restoring: $0, memory: memory, contents: contents)
            }
            try endure(SystemControlPortA {}, seed) { SystemControlPortA(restoring: $0) {} }
            try endure(GuestStatusPort(), seed) { GuestStatusPort(restoring: $0) }
            try endure(PCIHostBridge {}, seed) { try PCIHostBridge(restoring: $0) {} }
            try endureRootPort(seed)
            try endureFunction(seed)
            clock.advance(by: .seconds(40_000_000 * Int64(seed % 100)))
        }
    }

    private func endureRootPort(_ seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        let child = Self.function()
        let port = PCIRootPort(slotNumber: 3, child: child)
        port.assign(bus: 9, memory: 0xC010_0000..<0xC030_0000)
        for _ in 0..<20 {
            let bytes = Damage.done(to: port.save().encoded(), behind: 4, using: &random)
            guard let state = try? PCIRootPortSavedState(encoded: bytes),
                let restored = try? PCIRootPort(restoring: state, slotNumber: 3, child: child)
            else { continue }
            child.connect(Plain(), to: restored.connection(to: Connection()))
            let window = PCIExpressWindow(PCIHierarchy([PCIAddress(device: 3): restored]))
            for _ in 0..<100 {
                let place = random.next() % 16 << 20 | 3 << 15 | random.next() % 4096
                _ = window.write(offset: place, width: .double, value: random.next() & 0xFFFF_FFFF)
                _ = window.read(offset: place, width: .double)
            }
            #expect(try PCIRootPortSavedState(encoded: restored.save().encoded()) == restored.save(), "seed \(seed)")
            restored.disconnect()
            child.disconnect()
        }
    }
}
