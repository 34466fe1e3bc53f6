extension FirmwareConfiguration {
    /// Everything that can be selected. Numbers are little-endian; the file directory is big-endian.
    static func items(_ contents: Contents) -> [UInt16: [UInt8]] {
        var items: [UInt16: [UInt8]] = [:]
        func add(_ key: UInt16, _ value: some FixedWidthInteger) {
            var bytes: [UInt8] = []
            bytes.append(littleEndian: value)
            items[key] = bytes
        }
        items[FirmwareConfigurationKey.signature] = Array("QEMU".utf8)
        add(FirmwareConfigurationKey.id, FirmwareConfigurationFeature.traditional | FirmwareConfigurationFeature.dma)
        add(FirmwareConfigurationKey.ramSize, contents.layout.memorySize)
        add(FirmwareConfigurationKey.cpuCount, UInt16(clamping: contents.cpuCount))
        add(FirmwareConfigurationKey.maximumCPUs, UInt16(clamping: contents.cpuCount))
        add(FirmwareConfigurationKey.kernelSize, UInt32(clamping: contents.kernel.count))
        items[FirmwareConfigurationKey.kernelData] = contents.kernel
        add(FirmwareConfigurationKey.initrdSize, UInt32(clamping: contents.initrd.count))
        items[FirmwareConfigurationKey.initrdData] = contents.initrd
        let commandLine = Array(contents.commandLine.utf8) + [0]
        add(FirmwareConfigurationKey.commandLineSize, UInt32(clamping: commandLine.count))
        items[FirmwareConfigurationKey.commandLineData] = commandLine

        let files = [FirmwareFile(name: "etc/e820", bytes: e820(contents.layout))] + contents.files
        items[FirmwareConfigurationKey.fileDirectory] = directory(files)
        for (index, file) in files.enumerated() {
            items[FirmwareConfigurationKey.firstFile &+ UInt16(truncatingIfNeeded: index)] = file.bytes
        }
        return items
    }

    /// Packed entries of base, length and type.
    private static func e820(_ layout: PhysicalMemoryMap) -> [UInt8] {
        var bytes: [UInt8] = []
        for entry in layout.e820 {
            bytes.append(littleEndian: entry.base)
            bytes.append(littleEndian: entry.size)
            bytes.append(littleEndian: entry.type.rawValue)
        }
        return bytes
    }

    /// A count, then size, key, reserved and a name of 56 bytes with its terminator.
    private static func directory(_ files: [FirmwareFile]) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.append(littleEndian: UInt32(clamping: files.count).byteSwapped)
        for (index, file) in files.enumerated() {
            let key = FirmwareConfigurationKey.firstFile &+ UInt16(truncatingIfNeeded: index)
            bytes.append(littleEndian: UInt32(clamping: file.bytes.count).byteSwapped)
            bytes.append(littleEndian: key.byteSwapped)
            bytes.append(littleEndian: UInt16(0))
            bytes.append(file.name, width: 55)
            bytes.append(0)
        }
        return bytes
    }
}
