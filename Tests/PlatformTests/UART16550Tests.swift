import DeviceModel
import Fuzzing
import Testing

@testable import Platform

@Suite struct UART16550Tests {
    private let line = RecordingLine()
    private let sink = RecordingSink()
    private let spaceCalls = Recorder<Bool>()
    private let uart: UART16550

    init() {
        let calls = spaceCalls
        uart = UART16550(line: line, sink: sink) { calls.append(true) }
    }

    @Test(
        arguments: [
            (offset: 1, value: 0xFF, expected: 0x0F), (1, 0x05, 0x05), (3, 0x1B, 0x1B), (4, 0xFF, 0x1F),
            (7, 0xA5, 0xA5),
            (5, 0xFF, 0x60), (6, 0x0F, 0xB0),
        ] as [(offset: UInt64, value: UInt64, expected: UInt64)])
    func registerKeepsWhatItMay(offset: UInt64, value: UInt64, expected: UInt64) {
        uart.store(value, offset)
        #expect(uart.load(offset) == expected)
    }

    @Test func divisorLatchHidesDataAndInterruptEnable() {
        uart.store(0x05, 1)
        uart.store(0x83, 3)
        uart.store(0x01, 0)
        uart.store(0x02, 1)
        #expect([uart.load(0), uart.load(1)] == [0x01, 0x02])
        uart.store(0x03, 3)
        #expect(uart.load(1) == 0x05)
        #expect(sink.bytes.isEmpty)
    }

    @Test func onlyBytesAndEightRegisters() {
        #expect(uart.read(offset: 0, width: .word) == .rejected(.wrongWidth))
        #expect(uart.write(offset: 8, width: .byte, value: 0) == .rejected(.noSuchRegister))
    }

    /// drivers/tty/serial/8250/8250_port.c, autoconfig(): scratch test of IER, loopback test, FIFO test.
    @Test func linuxFindsA16550A() {
        uart.store(0, 1)
        #expect(uart.load(1) & 0x0F == 0)
        uart.store(0x0F, 1)
        #expect(uart.load(1) & 0x0F == 0x0F)
        uart.store(0, 1)
        uart.store(0x1A, 4)
        #expect(uart.load(6) & 0xF0 == 0x90)
        uart.store(0, 4)
        uart.store(0xBF, 3)
        uart.store(0, 2)
        uart.store(0, 3)
        uart.store(0x01, 2)
        #expect(uart.load(2) >> 6 == 3)
        uart.store(0xBF, 3)
        #expect(uart.load(2) != 0, "an enhanced feature register would be an XR or ST part")
    }

    /// serial8250_do_startup(): the tests for UART_BUG_THRE and UART_BUG_TXEN.
    @Test func transmitterInterruptComesBackWhenEnabledAgain() {
        uart.store(0x02, 1)
        #expect(uart.load(2) & 0x0F == 0x02)
        #expect(uart.load(2) & 0x0F == 0x01, "reading it from IIR clears it")
        uart.store(0x00, 1)
        uart.store(0x02, 1)
        #expect(uart.load(2) & 0x0F == 0x02)
        #expect(line.levels == [true, false, true, false])
    }

    @Test func eachFilledTransmitterInterruptsOnce() {
        uart.store(0x01, 2)
        uart.store(0x02, 1)
        _ = uart.load(2)
        for byte in UInt64(1)...16 { uart.store(byte, 0) }
        #expect(sink.bytes == Array(1...16))
        #expect(line.levels == [true, false, true])
        #expect(uart.load(5) & 0x60 == 0x60)
        #expect(uart.load(2) & 0x0F == 0x02)
        #expect(line.level == false)
    }

    @Test func fullSinkHoldsTheTransmitter() {
        uart.store(0x01, 2)
        uart.store(0x02, 1)
        _ = uart.load(2)
        sink.setCapacity(1)
        for byte in UInt64(1)...3 { uart.store(byte, 0) }
        #expect(uart.load(5) & 0x60 == 0)
        sink.setCapacity(.max)
        uart.outputSpaceAvailable()
        #expect(sink.bytes == [1, 2, 3])
        #expect(uart.load(5) & 0x60 == 0x60)
        #expect(line.level)
    }

    @Test(arguments: [(0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)] as [(UInt64, Int)])
    func receiverInterruptsAtItsTrigger(control: UInt64, trigger: Int) {
        uart.store(control, 2)
        uart.store(0x01, 1)
        #expect(uart.receive(repeatElement(0x41, count: trigger - 1)) == trigger - 1)
        #expect(uart.load(2) & 0x0F == (trigger == 1 ? 0x01 : 0x0C), "below it: character timeout")
        #expect(uart.receive([0x42]) == 1)
        #expect(uart.load(2) & 0x0F == 0x04)
        for _ in 0..<trigger { _ = uart.load(0) }
        #expect(uart.load(2) & 0x0F == 0x01)
        #expect(line.level == false)
    }

    @Test func inputBeyondTheFIFOWaitsForSpace() {
        #expect(uart.receive([1, 2]) == 1)
        #expect(uart.load(0) == 1)
        uart.store(0x01, 2)
        #expect(uart.receive(Array(0..<20)) == 16)
        #expect(uart.inputSpace == 0)
        let before = spaceCalls.count
        for expected in UInt64(0)..<16 { #expect(uart.load(0) == expected) }
        #expect(spaceCalls.count == before + 1)
        #expect(uart.isInputDrained)
        #expect(uart.load(5) & 0x01 == 0)
    }

    @Test func loopbackReturnsOutputAndHoldsInput() {
        uart.store(0x01, 2)
        uart.store(0x10, 4)
        uart.store(0x5A, 0)
        #expect(sink.bytes.isEmpty)
        #expect(uart.load(0) == 0x5A)
        #expect(uart.receive([1]) == 0)
        for _ in 0..<17 { uart.store(1, 0) }
        #expect(uart.load(5) & 0x02 == 0x02, "overrun")
        #expect(uart.load(5) & 0x02 == 0)
    }

    @Test func lostCarrierIsAModemInterrupt() {
        uart.store(0x08, 1)
        _ = uart.load(6)
        uart.setCarrier(false)
        #expect(line.level)
        #expect(uart.load(2) & 0x0F == 0x00)
        #expect(uart.load(6) == 0x38)
        #expect(uart.load(6) == 0x30)
        #expect(line.level == false)
    }

    @Test func savedStateContinues() throws {
        uart.store(0xC1, 2)
        uart.store(0x0D, 1)
        uart.store(0x77, 7)
        _ = uart.receive([1, 2, 3])
        uart.setCarrier(false)
        let bytes = uart.save().encoded()
        let secondLine = RecordingLine()
        let restored = try UART16550(
            restoring: UART16550SavedState(encoded: bytes), line: secondLine, sink: RecordingSink())
        #expect(restored.save() == uart.save())
        #expect(secondLine.level)
        #expect([restored.load(0), restored.load(0), restored.load(0)] == [1, 2, 3])
        #expect(restored.load(7) == 0x77)
    }

    @Test func everyRuntimeFieldIsSaved() {
        #expect(
            Mirror(reflecting: UARTState()).children.compactMap(\.label)
                == Mirror(reflecting: uart.save()).children.compactMap(\.label).map { $0 })
    }

    @Test func damagedSavedStateIsRefused() {
        let good = uart.save().encoded()
        #expect(throws: SavedStateError.self) { try UART16550SavedState(encoded: Array(good.dropLast())) }
        #expect(throws: SavedStateError.self) { try UART16550SavedState(encoded: good + [0]) }
        var random = SeededGenerator(seed: 7)
        for _ in 0..<2000 {
            var bytes = good
            bytes[Int(random.next() % UInt64(bytes.count))] = UInt8(truncatingIfNeeded: random.next())
            guard let state = try? UART16550SavedState(encoded: bytes),
                let restored = try? UART16550(restoring: state, line: RecordingLine(), sink: RecordingSink())
            else { continue }
            #expect(restored.inputSpace >= 0)
        }
    }

    @Test func randomAccesses() {
        for seed in FuzzSeeds(count: 4) {
            #expect(uart.endureRandomAccesses(seed: seed, span: 9), "seed \(seed)")
            #expect((0...16).contains(uart.inputSpace))
            // First of all the line control register: with its bit 7 the next one would be a divisor's.
            uart.store(0x03, 3)
            uart.store(0, 4)
            uart.store(0, 1)
            #expect(line.level == false, "seed \(seed): no interrupt is enabled")
        }
    }

    @Test func outputBufferSignalsOnceAndRefusesWhenFull() {
        let signals = Recorder<Bool>()
        let buffer = SerialOutputBuffer(capacity: 3) { signals.append(true) }
        #expect([1, 2, 3, 4].map(buffer.write) == [true, true, true, false])
        #expect(buffer.take() == [1, 2, 3])
        #expect(buffer.write(5))
        #expect(signals.count == 2)
    }
}
