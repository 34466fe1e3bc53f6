/// The controller as software sees it.
struct I8042State: Sendable {
    /// A byte for port 0x60, with the status bits that go with it.
    struct Output: Equatable, Sendable {
        var byte: UInt8
        var status: UInt8 = 0
    }

    /// More than any command sequence leaves unread; what a guest piles up beyond this is dropped.
    static let outputLimit = 16

    /// The controller's RAM; byte 0 is the command byte.
    var memory = [UInt8](repeating: 0, count: 32)
    var outputs: [Output] = []
    var outputPort = I8042OutputPort.notReset | I8042OutputPort.a20
    /// The command that the next byte at port 0x60 belongs to.
    var pendingCommand: UInt8?
    var wasCommandLast = false

    init() {
        memory[0] = I8042CommandByte.keyboardDisabled | I8042CommandByte.auxiliaryDisabled
    }

    var isLineHigh: Bool {
        guard let first = outputs.first, first.status & I8042Status.fromAuxiliary == 0 else { return false }
        return memory[0] & I8042CommandByte.keyboardInterrupt != 0
    }

    var status: UInt8 {
        I8042Status.notInhibited | (memory[0] & I8042CommandByte.system)
            | (wasCommandLast ? I8042Status.command : 0)
            | (outputs.first.map { I8042Status.outputFull | $0.status } ?? 0)
    }

    mutating func readData() -> UInt8 {
        outputs.isEmpty ? 0 : outputs.removeFirst().byte
    }

    private mutating func put(_ byte: UInt8, status: UInt8 = 0) {
        guard outputs.count < Self.outputLimit else { return }
        outputs.append(Output(byte: byte, status: status))
    }

    /// True when the machine must reset.
    mutating func writeCommand(_ command: UInt8) -> Bool {
        wasCommandLast = true
        pendingCommand = nil
        switch command {
        case 0x20...0x3F: put(memory[Int(command & 0x1F)])
        case 0x60...0x7F, I8042Command.writeOutputPort...I8042Command.writeAuxiliaryDevice: pendingCommand = command
        // 1: the clock line is stuck, which is how a controller says that it has no auxiliary port.
        case I8042Command.testAuxiliary: put(0x01)
        case I8042Command.selfTest:
            memory[0] |= I8042CommandByte.system
            put(0x55)
        case I8042Command.testKeyboard: put(0x00)
        case I8042Command.disableKeyboard: memory[0] |= I8042CommandByte.keyboardDisabled
        case I8042Command.enableKeyboard: memory[0] &= ~I8042CommandByte.keyboardDisabled
        case I8042Command.readInputPort: put(0x80)
        case I8042Command.readOutputPort: put(outputPort)
        // Pulses the output port's bits that are 0 here; bit 0 is the processor's reset.
        case 0xF0...0xFF: return command & I8042OutputPort.notReset == 0
        default: break
        }
        return false
    }

    /// True when the machine must reset.
    mutating func writeData(_ byte: UInt8) -> Bool {
        wasCommandLast = false
        let command = pendingCommand
        pendingCommand = nil
        switch command {
        case .some(0x60...0x7F): memory[Int((command ?? 0) & 0x1F)] = byte
        case I8042Command.writeOutputPort:
            outputPort = byte | I8042OutputPort.notReset
            return byte & I8042OutputPort.notReset == 0
        case I8042Command.writeKeyboardBuffer: put(byte)
        // Not what was written: the loop test of a driver fails, and it asks testAuxiliary.
        case I8042Command.writeAuxiliaryBuffer: put(~byte, status: I8042Status.fromAuxiliary)
        case I8042Command.writeAuxiliaryDevice:
            put(0xFE, status: I8042Status.timeout | I8042Status.fromAuxiliary)
        default:
            // For the keyboard that is not there: the controller reports the missing answer as 0xFE and a time-out.
            memory[0] &= ~I8042CommandByte.keyboardDisabled
            put(0xFE, status: I8042Status.timeout)
        }
        return false
    }
}
