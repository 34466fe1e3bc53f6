/// The fixed ACPI description table (ACPI 6.5 §5.2.9), by byte offset.
private enum FADTField {
    static let size = 276
    static let firmwareControl = 36
    static let dsdt = 40
    static let sciInterrupt = 46
    static let pm1aEvent = 56
    static let pm1aControl = 64
    static let pmTimer = 76
    static let pm1EventLength = 88
    static let pm1ControlLength = 89
    static let pmTimerLength = 91
    static let c2Latency = 96
    static let c3Latency = 98
    static let century = 108
    static let bootArchitecture = 109
    static let flags = 112
    static let resetRegister = 116
    static let resetValue = 128
    static let minorVersion = 131
    static let extendedDSDT = 140
    static let extendedPM1aEvent = 148
    static let extendedPM1aControl = 172
    static let extendedPMTimer = 208
    static let hypervisorVendor = 268
}

/// §5.2.9 table 5.10.
private enum FADTFlag {
    static let wbinvd: UInt32 = 1 << 0
    static let c1Supported: UInt32 = 1 << 2
    static let noFixedSleepButton: UInt32 = 1 << 5
    static let noFixedRTCWake: UInt32 = 1 << 6
    static let timerHas32Bits: UInt32 = 1 << 8
    static let resetRegisterSupported: UInt32 = 1 << 10
}

/// §5.2.9.3. The 8042 bit stays clear: there is no keyboard to find, and a guest that trusts it skips the search.
private enum FADTBootArchitecture {
    static let legacyDevices: UInt16 = 1 << 0
    static let noVGA: UInt16 = 1 << 2
}

extension ACPITables {
    static func fadt(facs: UInt64, dsdt: UInt64) -> [UInt8] {
        var fadt = [UInt8](repeating: 0, count: FADTField.size)
        let base = PowerManagementBlock.base
        fadt.store(UInt32(facs), at: FADTField.firmwareControl)
        fadt.store(UInt32(dsdt), at: FADTField.dsdt)
        fadt.store(dsdt, at: FADTField.extendedDSDT)
        fadt.store(PowerManagementBlock.sci, at: FADTField.sciInterrupt)
        fadt.store(UInt32(base + PowerManagementBlock.event), at: FADTField.pm1aEvent)
        fadt.store(UInt32(base + PowerManagementBlock.control), at: FADTField.pm1aControl)
        fadt.store(UInt32(base + PowerManagementBlock.timer), at: FADTField.pmTimer)
        fadt.store(PowerManagementBlock.eventLength, at: FADTField.pm1EventLength)
        fadt.store(PowerManagementBlock.controlLength, at: FADTField.pm1ControlLength)
        fadt.store(PowerManagementBlock.timerLength, at: FADTField.pmTimerLength)
        // Above 100 µs and 1000 µs: no C2, no C3.
        fadt.store(UInt16(0x0FFF), at: FADTField.c2Latency)
        fadt.store(UInt16(0x0FFF), at: FADTField.c3Latency)
        fadt.store(CMOSRegister.century, at: FADTField.century)
        fadt.store(
            FADTBootArchitecture.legacyDevices | FADTBootArchitecture.noVGA, at: FADTField.bootArchitecture)
        fadt.store(
            FADTFlag.wbinvd | FADTFlag.c1Supported | FADTFlag.noFixedSleepButton | FADTFlag.noFixedRTCWake
                | FADTFlag.timerHas32Bits | FADTFlag.resetRegisterSupported, at: FADTField.flags)
        storePorts(0xCF9, bits: 8, access: 1, at: FADTField.resetRegister, in: &fadt)
        fadt.store(ResetControl.fullReset, at: FADTField.resetValue)
        fadt.store(UInt8(5), at: FADTField.minorVersion)
        storePorts(
            base + PowerManagementBlock.event, bits: 32, access: 2, at: FADTField.extendedPM1aEvent, in: &fadt)
        storePorts(
            base + PowerManagementBlock.control, bits: 16, access: 2, at: FADTField.extendedPM1aControl, in: &fadt)
        storePorts(base + PowerManagementBlock.timer, bits: 32, access: 3, at: FADTField.extendedPMTimer, in: &fadt)
        fadt.store("MARTLET".utf8.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }, at: FADTField.hypervisorVendor)
        return table("FACP", revision: 6, body: Array(fadt[36...]))
    }

    /// A generic address structure in I/O space (§5.2.3.2).
    private static func storePorts(
        _ address: UInt64, bits: UInt8, access: UInt8, at offset: Int, in table: inout [UInt8]
    ) {
        table.store(UInt8(1), at: offset)
        table.store(bits, at: offset + 1)
        table.store(access, at: offset + 3)
        table.store(address, at: offset + 4)
    }
}
