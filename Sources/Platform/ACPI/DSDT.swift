/// The differentiated system description: the devices that nothing else announces.
enum DSDT {
    static func body(_ configuration: ACPIConfiguration) -> [UInt8] {
        // \_S5: the sleep types that PM1a and PM1b control registers take for power-off (ACPI 6.5 §7.4.2).
        let softOff = AML.integer(UInt64(PM1Control.softOff))
        let sleepState = AML.name("\\_S5", AML.package([softOff, softOff, AML.integer(0), AML.integer(0)]))
        var devices = [clock]
        for port in configuration.serialPorts { devices.append(serialPort(port)) }
        if configuration.hasPVPanic { devices.append(panicPort) }
        return sleepState + AML.scope("\\_SB", [AML.device("PCI0", hostBridge + devices)])
    }

    private static var hostBridge: [[UInt8]] {
        [
            AML.name("_HID", AML.eisaID("PNP0A03")),
            AML.name("_UID", AML.integer(0)),
            AML.name("_BBN", AML.integer(0)),
            AML.name(
                "_CRS",
                AMLResource.template([
                    AMLResource.busNumbers(0...0xFF),
                    AMLResource.ports(0xCF8, count: 8),
                    AMLResource.portWindow(0...0xCF7),
                    AMLResource.portWindow(0xD00...0xFFFF),
                    AMLResource.memoryWindow(0xA_0000...0xB_FFFF, isCacheable: true),
                    // From the end of the RAM below 4 GiB to the I/O APIC.
                    AMLResource.memoryWindow(
                        UInt32(PhysicalMemoryMap.lowLimit)...0xFEBF_FFFF, isCacheable: false),
                ])),
        ]
    }

    private static var clock: [UInt8] {
        AML.device(
            "RTC",
            [
                AML.name("_HID", AML.eisaID("PNP0B00")),
                AML.name("_CRS", AMLResource.template([AMLResource.ports(0x70, count: 2), AMLResource.interrupt(8)])),
            ])
    }

    private static func serialPort(_ port: SerialPort) -> [UInt8] {
        let number = (SerialPort.allCases.firstIndex(of: port) ?? 0) + 1
        return AML.device(
            "COM\(number)",
            [
                AML.name("_HID", AML.eisaID("PNP0501")),
                AML.name("_UID", AML.integer(UInt64(number))),
                AML.name("_STA", AML.integer(0xF)),
                AML.name(
                    "_CRS",
                    AMLResource.template([
                        AMLResource.ports(UInt16(port.base), count: 8), AMLResource.interrupt(port.irq),
                    ])),
            ])
    }

    private static var panicPort: [UInt8] {
        AML.device(
            "PEVT",
            [
                AML.name("_HID", AML.string("QEMU0001")),
                AML.name("_STA", AML.integer(0xF)),
                AML.name("_CRS", AMLResource.template([AMLResource.ports(UInt16(PVPanic.port), count: 1)])),
            ])
    }
}
