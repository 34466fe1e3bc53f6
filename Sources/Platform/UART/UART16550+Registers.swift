/// The 16550A's registers and bits (National Semiconductor PC16550D data sheet, June 1995, §8).
enum UARTRegister {
    static let data: UInt64 = 0  // RBR / THR / DLL
    static let interruptEnable: UInt64 = 1  // IER / DLM
    static let interruptIdentification: UInt64 = 2  // IIR / FCR
    static let lineControl: UInt64 = 3
    static let modemControl: UInt64 = 4
    static let lineStatus: UInt64 = 5
    static let modemStatus: UInt64 = 6
    static let scratch: UInt64 = 7
}

/// IER, §8.7.
struct UARTInterruptEnable: OptionSet, Sendable {
    var rawValue: UInt8
    static let receivedData = Self(rawValue: 1)
    static let transmitterEmpty = Self(rawValue: 2)
    static let lineStatus = Self(rawValue: 4)
    static let modemStatus = Self(rawValue: 8)
    static let writable: UInt8 = 0x0F
}

/// IIR's low four bits, §8.6 table V, highest priority first.
enum UARTInterrupt: UInt8, Sendable {
    case lineStatus = 0x6
    case receivedData = 0x4
    case characterTimeout = 0xC
    case transmitterEmpty = 0x2
    case modemStatus = 0x0
    case none = 0x1
}

/// FCR, §8.5.
enum UARTFIFOControl {
    static let enable: UInt8 = 0x01
    static let clearReceiver: UInt8 = 0x02
    static let clearTransmitter: UInt8 = 0x04
    /// Bytes that FCR bits 7:6 ask for before a received-data interrupt.
    static let triggers = [1, 4, 8, 14]
    static let depth = 16
}

/// LCR, §8.1: only the divisor latch access bit changes what software sees.
enum UARTLineControl {
    static let divisorLatchAccess: UInt8 = 0x80
}

/// MCR, §8.9.
struct UARTModemControl: OptionSet, Sendable {
    var rawValue: UInt8
    static let dataTerminalReady = Self(rawValue: 0x01)
    static let requestToSend = Self(rawValue: 0x02)
    static let out1 = Self(rawValue: 0x04)
    static let out2 = Self(rawValue: 0x08)
    static let loopback = Self(rawValue: 0x10)
    static let writable: UInt8 = 0x1F
}

/// LSR, §8.4.
enum UARTLineStatus {
    static let dataReady: UInt8 = 0x01
    static let overrun: UInt8 = 0x02
    /// Overrun, parity, framing, break: what raises the line status interrupt and is cleared by reading LSR.
    static let errors: UInt8 = 0x1E
    static let holdingRegisterEmpty: UInt8 = 0x20
    static let transmitterEmpty: UInt8 = 0x40
}

/// MSR, §8.10: the state in the high half, what changed since the last read in the low half.
enum UARTModemStatus {
    static let clearToSend: UInt8 = 0x10
    static let dataSetReady: UInt8 = 0x20
    static let ringIndicator: UInt8 = 0x40
    static let dataCarrierDetect: UInt8 = 0x80
    static let trailingEdgeRing: UInt8 = 0x04
}
