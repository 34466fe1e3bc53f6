import GuestMemory
import X86

@testable import Platform

/// A bzImage header of protocol 2.15 and a payload, all made here.
func makeBzImage(payload: Int = 8192, preferredAddress: UInt64 = 0x100_0000, initSize: UInt32 = 0x10_0000) -> [UInt8] {
    let setup = 2 * 512
    var image = [UInt8](repeating: 0, count: setup)
    image[0x1F1] = 1  // setup_sects
    image.put(UInt32((payload + 15) / 16), 0x1F4)
    image.put(UInt16(0xAA55), 0x1FE)
    image.put(UInt16(0x6AEB), 0x200)
    image.put(UInt32(0x5372_6448), 0x202)
    image.put(UInt16(0x020F), 0x206)
    image[0x211] = 1
    image.put(UInt32(0x10_0000), 0x214)
    image.put(UInt32(0x7FFF_FFFF), 0x22C)
    image.put(UInt32(0x20_0000), 0x230)
    image[0x234] = 1
    image[0x235] = 0x15
    image.put(UInt16(0x7F), 0x236)
    image.put(UInt32(2047), 0x238)
    image.put(UInt64(0xDEAD), 0x250)
    image.put(preferredAddress, 0x258)
    image.put(initSize, 0x260)
    return image + (0..<payload).map { UInt8(truncatingIfNeeded: $0 &* 7) }
}

struct SyntheticSegment {
    var kind: UInt32 = 1
    var physicalAddress: UInt64
    var virtualAddress: UInt64?
    var bytes: [UInt8]
    var memorySize: UInt64?
}

/// An ELF executable with the segments' bytes behind its headers.
func makeELF(is64Bit: Bool, entry: UInt64, segments: [SyntheticSegment]) -> [UInt8] {
    let (headerSize, entrySize) = is64Bit ? (64, 56) : (52, 32)
    var image = [UInt8](repeating: 0, count: headerSize + entrySize * segments.count)
    image.replaceSubrange(0..<7, with: [0x7F, 0x45, 0x4C, 0x46, is64Bit ? 2 : 1, 1, 1])
    image.put(UInt16(2), 16)
    image.put(UInt16(is64Bit ? 62 : 3), 18)
    func word(_ value: UInt64, _ offset: Int) {
        if is64Bit { image.put(value, offset) } else { image.put(UInt32(truncatingIfNeeded: value), offset) }
    }
    word(entry, 24)
    word(UInt64(headerSize), is64Bit ? 32 : 28)
    image.put(UInt16(entrySize), is64Bit ? 54 : 42)
    image.put(UInt16(segments.count), is64Bit ? 56 : 44)
    for (index, segment) in segments.enumerated() {
        let start = headerSize + entrySize * index
        let offsets = is64Bit ? [8, 16, 24, 32, 40] : [4, 8, 12, 16, 20]
        image.put(segment.kind, start)
        let values = [
            UInt64(image.count), segment.virtualAddress ?? segment.physicalAddress, segment.physicalAddress,
            UInt64(segment.bytes.count), segment.memorySize ?? UInt64(segment.bytes.count),
        ]
        for (offset, value) in zip(offsets, values) { word(value, start + offset) }
        image += segment.bytes
    }
    return image
}

func makePVHNote(entry: UInt32) -> SyntheticSegment {
    var note: [UInt8] = []
    for value in [4, 3, 1] as [UInt32] { note.append(littleEndian: value) }
    note += Array("GNU\0".utf8) + [1, 2, 3, 0]
    for value in [4, 4, 18] as [UInt32] { note.append(littleEndian: value) }
    note += Array("Xen\0".utf8)
    note.append(littleEndian: entry)
    return SyntheticSegment(kind: 4, physicalAddress: 0, bytes: note)
}

/// The header, and for the "a.out kludge" its addresses.
func makeMultibootHeader(flags: UInt32 = 3, addresses: [UInt32] = []) -> [UInt8] {
    let flags = addresses.isEmpty ? flags : flags | 1 << 16
    var bytes: [UInt8] = []
    for value in [0x1BAD_B002, flags, 0 &- 0x1BAD_B002 &- flags] + addresses { bytes.append(littleEndian: value) }
    return bytes
}

func makeRequest(
    _ image: [UInt8], modules: [BootModule] = [], commandLine: String = "console=ttyS0", memory: UInt64 = 64 << 20
) throws -> BootRequest {
    BootRequest(
        kernel: BootFileBytes(name: "kernel", image), modules: modules, commandLine: commandLine,
        layout: try PhysicalMemoryMap(memorySize: memory), rsdp: GuestPhysicalAddress(0xE0000))
}

extension GuestMemory {
    func bytes(_ address: UInt64, _ count: Int) throws -> [UInt8] {
        try read(count: count, at: GuestPhysicalAddress(address))
    }

    func number<T: FixedWidthInteger & BitwiseCopyable>(_ type: T.Type, _ address: UInt64) throws -> UInt64 {
        UInt64(truncatingIfNeeded: try load(type, at: GuestPhysicalAddress(address)))
    }

    /// The zero-terminated string at `address`.
    func string(_ address: UInt64) throws -> String {
        var bytes: [UInt8] = []
        while let byte = try? load(UInt8.self, at: GuestPhysicalAddress(address + UInt64(bytes.count))), byte != 0 {
            bytes.append(byte)
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}
