internal import DeviceModel
internal import Hypervisor
internal import Synchronization
internal import X86

/// A line into the engine's interrupt controllers.
struct EngineInterruptLine: InterruptLine {
    let machine: any VirtualMachine
    let gsi: GSI

    func setLevel(_ level: Bool) {
        // A line that the engine refuses is our own wiring: there is nothing that a device could do about it.
        try? machine.setIRQLine(gsi, level: level)
    }
}

/// One line for several devices, high while any of them drives it: COM1 and COM3 share IRQ 4, COM2 and COM4 IRQ 3.
final class SharedInterruptLine: Sendable {
    private let output: any InterruptLine
    private let drivers = Mutex<UInt64>(0)

    init(_ output: some InterruptLine) {
        self.output = output
    }

    /// One device's end of the line; at most 64 of them.
    func input(_ index: Int) -> Input { Input(line: self, bit: 1 << UInt64(index & 63)) }

    struct Input: InterruptLine {
        let line: SharedInterruptLine
        let bit: UInt64

        func setLevel(_ level: Bool) {
            // The lock is held across the output so that the last level is the one that stays.
            line.drivers.withLock { drivers in
                let before = drivers
                if level { drivers |= bit } else { drivers &= ~bit }
                if (before == 0) != (drivers == 0) { line.output.setLevel(drivers != 0) }
            }
        }
    }
}
