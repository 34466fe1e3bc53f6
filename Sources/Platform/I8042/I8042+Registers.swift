/// The keyboard controller's ports and commands (IBM PS/2 Hardware Interface Technical Reference, 1988, "Keyboard and
/// Auxiliary Device Controller").
enum I8042Port {
    static let data: UInt64 = 0
    /// Status when read, command when written; at 0x64.
    static let command: UInt64 = 4
}

enum I8042Status {
    static let outputFull: UInt8 = 0x01
    static let system: UInt8 = 0x04
    /// The last write went to the command port.
    static let command: UInt8 = 0x08
    static let notInhibited: UInt8 = 0x10
    static let fromAuxiliary: UInt8 = 0x20
    static let timeout: UInt8 = 0x40
}

enum I8042CommandByte {
    static let keyboardInterrupt: UInt8 = 0x01
    static let system: UInt8 = 0x04
    static let keyboardDisabled: UInt8 = 0x10
    static let auxiliaryDisabled: UInt8 = 0x20
}

enum I8042Command {
    static let testAuxiliary: UInt8 = 0xA9
    static let selfTest: UInt8 = 0xAA
    static let testKeyboard: UInt8 = 0xAB
    static let disableKeyboard: UInt8 = 0xAD
    static let enableKeyboard: UInt8 = 0xAE
    static let readInputPort: UInt8 = 0xC0
    static let readOutputPort: UInt8 = 0xD0
    static let writeOutputPort: UInt8 = 0xD1
    static let writeKeyboardBuffer: UInt8 = 0xD2
    static let writeAuxiliaryBuffer: UInt8 = 0xD3
    static let writeAuxiliaryDevice: UInt8 = 0xD4
}

/// The output port: bit 0 low resets the processor, bit 1 is the A20 gate.
enum I8042OutputPort {
    static let notReset: UInt8 = 0x01
    static let a20: UInt8 = 0x02
}
