/// The differentiated system description: the devices that nothing else announces.
enum DSDT {
    static func body(_ configuration: ACPIConfiguration) -> [UInt8] {
        // \_S5: the sleep types that PM1a and PM1b control registers take for power-off (ACPI 6.5 §7.4.2).
        let softOff = AML.integer(UInt64(PM1Control.softOff))
        let sleepState = AML.name("\\_S5", AML.package([softOff, softOff, AML.integer(0), AML.integer(0)]))
        var devices = [clock]
        for port in configuration.serialPorts { devices.append(serialPort(port)) }
        if configuration.hasPVPanic { devices.append(panicPort) }
        return sleepState
            + AML.scope("\\_SB", [AML.device("PCI0", hostBridge(configuration) + devices), configurationWindow])
    }

    private static func hostBridge(_ configuration: ACPIConfiguration) -> [[UInt8]] {
        var windows = [
            AMLResource.busNumbers(0...0xFF),
            AMLResource.ports(0xCF8, count: 8),
            AMLResource.portWindow(0...0xCF7),
            AMLResource.portWindow(0xD00...0xFFFF),
            AMLResource.memoryWindow(0xA_0000...0xB_FFFF, isCacheable: true),
        ]
        for window in PCIMemoryLayout.lowWindows {
            windows.append(
                AMLResource.memoryWindow(
                    UInt32(window.lowerBound)...UInt32(window.upperBound - 1), isCacheable: false))
        }
        if let window = configuration.highPCIWindow { windows.append(AMLResource.highMemoryWindow(window)) }
        var bridge = [
            // A PCI Express root, which systems that do not know it take for a PCI one.
            AML.name("_HID", AML.eisaID("PNP0A08")),
            AML.name("_CID", AML.eisaID("PNP0A03")),
            AML.name("_UID", AML.integer(0)),
            AML.name("_BBN", AML.integer(0)),
            AML.name("_CRS", AMLResource.template(windows)),
        ]
        if !configuration.pciSlots.isEmpty { bridge.append(interruptRouting(configuration.pciSlots)) }
        return bridge
    }

    /// Each pin of the devices on bus 0 with its GSI (ACPI 6.5 §6.2.13). What is behind a root port reaches a pin of
    /// the port, as every bridge's interrupts do (PCI-to-PCI Bridge 1.2 §9.1).
    private static func interruptRouting(_ slots: [UInt8]) -> [UInt8] {
        let entries = slots.prefix(32).flatMap { slot in
            (0..<4).map { pin in
                AML.package([
                    AML.integer(UInt64(slot) << 16 | 0xFFFF), AML.integer(UInt64(pin)), AML.integer(0),
                    AML.integer(UInt64(PCIInterruptRouting.gsi(slot: slot, pin: pin))),
                ])
            }
        }
        return AML.name("_PRT", AML.package(entries))
    }

    /// What the configuration window takes is said as a resource of the board (PCI Firmware 3.2 §4.1.2).
    private static var configurationWindow: [UInt8] {
        AML.device(
            "MCFG",
            [
                AML.name("_HID", AML.eisaID("PNP0C02")),
                AML.name(
                    "_CRS",
                    AMLResource.template([
                        AMLResource.memory(
                            UInt32(PCIMemoryLayout.configurationBase), size: UInt32(PCIMemoryLayout.configurationSize))
                    ])),
            ])
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
