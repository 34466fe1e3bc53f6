/// The setup header of a bzImage (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").
struct LinuxHeader: Equatable, Sendable {
    static let bootFlagOffset = 0x1FE
    static let bootFlag: UInt16 = 0xAA55
    static let magicOffset = 0x202
    /// "HdrS"
    static let magic: UInt32 = 0x5372_6448
    /// The first version whose xloadflags say whether there is a 64-bit entry.
    static let minimumVersion: UInt16 = 0x020C
    static let loadedHigh: UInt8 = 0x01
    /// XLF_KERNEL_64
    static let kernel64: UInt16 = 0x01
    static let entry64: UInt64 = 0x200
    static let sectorSize: UInt64 = 512
    /// Where boot_params' next field begins: no header reaches further.
    static let start = 0x1F1
    static let maximumEnd = 0x290

    var setupSectors: UInt8
    var payloadParagraphs: UInt32
    var version: UInt16
    var loadFlags: UInt8
    var code32Start: UInt32
    var initrdAddressMaximum: UInt32
    var kernelAlignment: UInt32
    var isRelocatable: Bool
    var minimumAlignment: UInt8
    var extendedLoadFlags: UInt16
    var commandLineSize: UInt32
    var preferredAddress: UInt64
    var initSize: UInt32
    /// The header's own bytes, from 0x1F1 on.
    var bytes: [UInt8]

    static func isPresent(_ window: [UInt8]) -> Bool {
        window.load(UInt16.self, at: bootFlagOffset) == bootFlag && window.load(UInt32.self, at: magicOffset) == magic
    }

    init(_ window: [UInt8], _ file: any BootFile) throws(BootError) {
        func field<T: FixedWidthInteger>(_ type: T.Type, at offset: Int) throws(BootError) -> T {
            guard let value = window.load(type, at: offset) else {
                throw .truncated(file, needed: UInt64(Self.maximumEnd), part: "setup header")
            }
            return value
        }
        setupSectors = try field(UInt8.self, at: 0x1F1)
        payloadParagraphs = try field(UInt32.self, at: 0x1F4)
        version = try field(UInt16.self, at: 0x206)
        loadFlags = try field(UInt8.self, at: 0x211)
        code32Start = try field(UInt32.self, at: 0x214)
        initrdAddressMaximum = try field(UInt32.self, at: 0x22C)
        kernelAlignment = try field(UInt32.self, at: 0x230)
        isRelocatable = try field(UInt8.self, at: 0x234) != 0
        minimumAlignment = try field(UInt8.self, at: 0x235)
        extendedLoadFlags = try field(UInt16.self, at: 0x236)
        commandLineSize = try field(UInt32.self, at: 0x238)
        preferredAddress = try field(UInt64.self, at: 0x258)
        initSize = try field(UInt32.self, at: 0x260)
        // The jump at 0x200 leads behind the header: its operand is the header's length.
        let end = min(Self.magicOffset + Int(try field(UInt8.self, at: 0x201)), Self.maximumEnd)
        guard end >= 0x264, window.count >= end else {
            throw .invalidHeader(file, why: "its setup header ends at \(BootError.hexadecimal(UInt64(end)))")
        }
        bytes = Array(window[Self.start..<end])
    }

    /// A setup_sects of 0 means 4 (boot.rst, "setup_sects").
    var setupSize: UInt64 { (UInt64(setupSectors == 0 ? 4 : setupSectors) + 1) * Self.sectorSize }
}
