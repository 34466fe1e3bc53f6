/// The MC146818's registers (Motorola MC146818 data sheet, 1984; figures 12–16) and the PC's use of the CMOS behind
/// them (IBM PC AT Technical Reference, 1984, p. 1-56).
enum CMOSRegister {
    static let seconds: UInt8 = 0x00
    static let secondsAlarm: UInt8 = 0x01
    static let minutes: UInt8 = 0x02
    static let minutesAlarm: UInt8 = 0x03
    static let hours: UInt8 = 0x04
    static let hoursAlarm: UInt8 = 0x05
    static let dayOfWeek: UInt8 = 0x06
    static let dayOfMonth: UInt8 = 0x07
    static let month: UInt8 = 0x08
    static let year: UInt8 = 0x09
    static let a: UInt8 = 0x0A
    static let b: UInt8 = 0x0B
    static let c: UInt8 = 0x0C
    static let d: UInt8 = 0x0D
    /// FADT's Century field points here.
    static let century: UInt8 = 0x32
    /// KiB of memory below 640 KiB; low byte, high byte.
    static let baseMemory: UInt8 = 0x15
    /// KiB of memory above 1 MiB, at most 65535; twice, and low byte first.
    static let extendedMemory: UInt8 = 0x17
    static let extendedMemoryCopy: UInt8 = 0x30
    /// 64 KiB units above 16 MiB, below 4 GiB.
    static let memoryAbove16MiB: UInt8 = 0x34
    /// 64 KiB units above 4 GiB; three bytes.
    static let memoryAbove4GiB: UInt8 = 0x5B
}

/// Register A: update in progress, divider, periodic rate.
enum CMOSRegisterA {
    static let updateInProgress: UInt8 = 0x80
    /// Divider for a 32.768 kHz crystal, and 1.024 kHz periodic rate: what a BIOS leaves.
    static let reset: UInt8 = 0x26
    static let dividerMask: UInt8 = 0x70
    static let runningDivider: UInt8 = 0x20
    static let rateMask: UInt8 = 0x0F
}

/// Register B.
enum CMOSRegisterB {
    static let set: UInt8 = 0x80
    static let periodicInterrupt: UInt8 = 0x40
    static let alarmInterrupt: UInt8 = 0x20
    static let updateInterrupt: UInt8 = 0x10
    static let binary: UInt8 = 0x04
    static let hours24: UInt8 = 0x02
}

/// Register C: the flags sit where register B has their enables.
enum CMOSRegisterC {
    static let interruptRequest: UInt8 = 0x80
    static let sources: UInt8 = 0x70
}

/// Register D: the battery is good.
enum CMOSRegisterD {
    static let validRAMAndTime: UInt8 = 0x80
}
