/// The fixed power-management registers (ACPI 6.5 §4.8.3), one block of 16 ports.
enum PowerManagementBlock {
    static let base: UInt64 = 0x600
    static let size: UInt64 = 16
    /// PM1 status and enable, two bytes each.
    static let event: UInt64 = 0
    static let control: UInt64 = 4
    static let timer: UInt64 = 8

    static let eventLength: UInt8 = 4
    static let controlLength: UInt8 = 2
    static let timerLength: UInt8 = 4
    /// The interrupt that PCs use for it, level-triggered and active high here.
    static let sci: UInt16 = 9
}

/// PM1 status and enable (ACPI 6.5 §4.8.3.1): only the power button ever happens.
enum PM1Event {
    static let powerButton: UInt16 = 1 << 8
    /// Timer, global lock, power button, sleep button, RTC.
    static let enableWritable: UInt16 = 0x0721
}

/// PM1 control (ACPI 6.5 §4.8.3.2.1).
enum PM1Control {
    static let sciEnable: UInt16 = 1 << 0
    static let sleepTypeShift: UInt16 = 10
    static let sleepTypeMask: UInt16 = 7
    /// Write-only.
    static let sleepEnable: UInt16 = 1 << 13
    static let writable: UInt16 = 0x1C02
    /// The sleep type that \_S5 in the DSDT names.
    static let softOff: UInt8 = 5
}

/// The power-management timer (ACPI 6.5 §4.8.2.1).
enum PowerManagementTimer {
    static let frequency: Int64 = 3_579_545
}
