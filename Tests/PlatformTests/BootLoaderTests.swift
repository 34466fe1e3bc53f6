import GuestMemory
import Testing
import X86

@testable import Platform

@Suite struct LinuxLoaderTests {
    private let initrd = BootModule(file: BootFileBytes(name: "initrd", [UInt8](repeating: 0x5A, count: 5000)))

    @Test func bzImageIsEnteredIn64BitMode() throws {
        let image = makeBzImage()
        let request = try makeRequest(image, modules: [initrd])
        let memory = try makeMemory(request.layout)
        let state = try BootLoader.plan(request).write(to: memory)

        #expect(state.bootProtocol == .linux64)
        #expect(state.registers.rip == 0x100_0200)
        #expect(try memory.bytes(0x100_0000, 8192) == Array(image[1024...]))
        let parameters = state.registers.rsi
        #expect(try memory.bytes(parameters + 0x202, 4) == Array("HdrS".utf8))
        #expect(try memory.number(UInt8.self, parameters + 0x210) == 0xFF)
        #expect(try memory.number(UInt64.self, parameters + 0x250) == 0, "setup_data is ours, not the file's")
        #expect(try memory.number(UInt64.self, parameters + 0x070) == 0xE0000)
        #expect(try memory.string(memory.number(UInt32.self, parameters + 0x228)) == "console=ttyS0")
        let address = try memory.number(UInt32.self, parameters + 0x218)
        #expect(address == (64 << 20) - 8192)
        #expect(try memory.number(UInt32.self, parameters + 0x21C) == 5000)
        #expect(try memory.bytes(address, 5000) == [UInt8](repeating: 0x5A, count: 5000))
        #expect(try memory.number(UInt8.self, parameters + 0x1E8) == 4)
        #expect(try memory.number(UInt64.self, parameters + 0x2D0 + 40) == 0x10_0000)
        #expect(try memory.number(UInt64.self, parameters + 0x2D0 + 48) == 63 << 20)
    }

    @Test func pageTablesMapFourGiBOntoThemselves() throws {
        let request = try makeRequest(makeBzImage())
        let memory = try makeMemory(request.layout)
        let state = try BootLoader.plan(request).write(to: memory)
        #expect(state.cr0 == 0x8000_0011 && state.cr4 == 0x20 && state.efer == 0x500)
        for address in [0, 0x100_0200, 0x3FFF_FFFF, 0x4000_0000, 0xFEE0_0000, 0xFFFF_FFFF] as [UInt64] {
            let directoryPointers = try memory.number(UInt64.self, state.cr3 + 8 * (address >> 39))
            let directory = try memory.number(UInt64.self, directoryPointers & ~0xFFF + 8 * (address >> 30 & 511))
            let page = try memory.number(UInt64.self, directory & ~0xFFF + 8 * (address >> 21 & 511))
            #expect(directoryPointers & 3 == 3 && directory & 3 == 3)
            #expect(page == address & ~0x1F_FFFF | 0x83)
        }
    }

    @Test func segmentsAreWhatLinuxWants() throws {
        let request = try makeRequest(makeBzImage())
        let memory = try makeMemory(request.layout)
        let state = try BootLoader.plan(request).write(to: memory)
        #expect(state.code.selector == 0x10 && state.code.l && !state.code.db && state.data.selector == 0x18)
        #expect(state.task.type == 0xB && !state.task.s && state.task.present && state.localTable.unusable)
        #expect(state.registers.rflags == 2)
        #expect(state.gdt.limit == 31)
        #expect(try memory.number(UInt64.self, state.gdt.base + 0x10) == 0x00AF_9B00_0000_FFFF)
        #expect(try memory.number(UInt64.self, state.gdt.base + 0x18) == 0x00CF_9300_0000_FFFF)
    }

    @Test(
        arguments: [
            // preferred address, memory, expected
            (0x100_0000, 64 << 20, 0x100_0000), (0x100_0000, 8 << 20, 0x20_0000), (0x30_0000, 8 << 20, 0x30_0000),
            (0xFFFF_FFFF_FFFF_F000, 64 << 20, 0x20_0000),
        ] as [(UInt64, UInt64, UInt64)])
    func relocatableKernelMovesWhereThereIsRAM(preferred: UInt64, memory: UInt64, expected: UInt64) throws {
        let plan = try BootLoader.plan(makeRequest(makeBzImage(preferredAddress: preferred), memory: memory))
        #expect(plan.state.registers.rip == expected + 0x200)
    }

    @Test func rewritingAfterAResetRestoresEverything() throws {
        let request = try makeRequest(makeBzImage())
        let memory = try makeMemory(request.layout)
        let plan = try BootLoader.plan(request)
        let state = try plan.write(to: memory)
        let before = try memory.bytes(0x8000, 0x10000)
        try memory.write([UInt8](repeating: 0xEE, count: 0x10000), at: GuestPhysicalAddress(0x8000))
        #expect(try plan.write(to: memory) == state)
        // What lies between our structures is nobody's.
        let after = try memory.bytes(0x8000, 0x10000)
        #expect(zip(before, after).allSatisfy { $0 == $1 || ($0 == 0 && $1 == 0xEE) })
    }

    /// Each row breaks one thing; offset and bytes are what is put into the image.
    @Test(
        arguments: [
            ("version 2.11", 0x206, [0x0B, 0x02], .unsupported), ("32-bit", 0x236, [0, 0], .unsupported),
            ("zImage", 0x211, [0], .unsupported), ("syssize", 0x1F4, [0xFF, 0xFF, 0xFF, 0xFF], .truncated),
            ("setup_sects", 0x1F1, [200], .truncated), ("header length", 0x201, [0], .invalidHeader),
            ("init_size", 0x260, [0xFF, 0xFF, 0xFF, 0xFF], .kernelDoesNotFit),
            ("cmdline_size", 0x238, [4, 0, 0, 0], .commandLineTooLong), ("magic", 0x202, [0], .notAKernel),
            ("boot flag", 0x1FE, [0], .notAKernel),
        ] as [(String, Int, [UInt8], BootError.Kind)])
    func brokenHeader(name: String, offset: Int, bytes: [UInt8], expected: BootError.Kind) throws {
        var image = makeBzImage()
        image.replaceSubrange(offset..<offset + bytes.count, with: bytes)
        #expect(kind(try makeRequest(image)) == expected)
    }

    @Test func alignmentMustBeAPowerOfTwo() throws {
        var image = makeBzImage(preferredAddress: 1 << 40)
        image.put(UInt32(0), 0x230)
        #expect(kind(try makeRequest(image)) == .invalidHeader)
        image[0x234] = 0
        #expect(kind(try makeRequest(image)) == .kernelDoesNotFit)
    }

    @Test(
        arguments: [
            (0, .empty), (1, .notAKernel), (0x205, .notAKernel), (0x206, .truncated), (0x250, .truncated),
            (1500, .truncated),
        ]
            as [(Int, BootError.Kind)])
    func truncatedImage(count: Int, expected: BootError.Kind) throws {
        #expect(kind(try makeRequest(Array(makeBzImage().prefix(count)))) == expected)
    }

    @Test func moduleTrouble() throws {
        let big = BootModule(file: BootFileBytes(name: "big", [UInt8](repeating: 1, count: 7 << 20)))
        let empty = BootModule(file: BootFileBytes(name: "empty", []))
        let image = makeBzImage()
        #expect(kind(try makeRequest(image, modules: [big], memory: 8 << 20)) == .moduleDoesNotFit)
        #expect(kind(try makeRequest(image, modules: [empty])) == .empty)
        #expect(kind(try makeRequest(image, modules: [initrd, initrd])) == .tooManyModules)
        #expect(kind(try makeRequest(image, commandLine: String(repeating: "a", count: 2048))) == .commandLineTooLong)
        #expect(kind(try makeRequest(image, commandLine: String(repeating: "a", count: 2047))) == nil)
    }

    @Test func initrdStaysBelowTheKernelsLimit() throws {
        var image = makeBzImage()
        image.put(UInt32(0x1FF_FFFF), 0x22C)
        let request = try makeRequest(image, modules: [initrd])
        let memory = try makeMemory(request.layout)
        let state = try BootLoader.plan(request).write(to: memory)
        #expect(try memory.number(UInt32.self, state.registers.rsi + 0x218) == 0x200_0000 - 8192)
    }

    @Test func messageHasThreeParts() throws {
        let error = #expect(throws: BootError.self) {
            try BootLoader.plan(makeRequest(makeBzImage(initSize: 0x4000_0000)))
        }
        #expect(
            error?.description
                == "Cannot boot kernel: it needs 1073741824 bytes of RAM at 0x1000000, and the guest has RAM from 0 to "
                + "0xa0000 and from 0x100000 to 0x4000000; give the guest more memory (--memory)")
    }
}

/// Nil when the plan succeeds.
func kind(_ request: BootRequest) -> BootError.Kind? {
    do throws(BootError) {
        _ = try BootLoader.plan(request)
        return nil
    } catch {
        return error.kind
    }
}

@Suite struct ELFLoaderTests {
    private let code = SyntheticSegment(
        physicalAddress: 0x100_0000, virtualAddress: 0xFFFF_FFFF_8100_0000, bytes: [UInt8](1...100), memorySize: 0x2000)

    @Test(arguments: [true, false])
    func pvhNoteIsFollowed(is64Bit: Bool) throws {
        var segment = code
        if !is64Bit { segment.virtualAddress = 0xC100_0000 }
        let image = makeELF(is64Bit: is64Bit, entry: 0, segments: [segment, makePVHNote(entry: 0x100_0040)])
        let initrd = BootModule(file: BootFileBytes(name: "initrd", [1, 2, 3]))
        let request = try makeRequest(image, modules: [initrd])
        let memory = try makeMemory(request.layout)
        let state = try BootLoader.plan(request).write(to: memory)

        #expect(state.bootProtocol == .pvh && state.registers.rip == 0x100_0040)
        #expect(state.cr0 == 0x11 && state.cr4 == 0 && state.efer == 0 && state.code.db && !state.code.l)
        let info = state.registers.rbx
        #expect(try memory.number(UInt32.self, info) == 0x336E_C578)
        #expect(try memory.number(UInt32.self, info + 4) == 1)
        #expect(try memory.number(UInt32.self, info + 12) == 1)
        let module = try memory.number(UInt64.self, info + 16)
        #expect(try memory.bytes(memory.number(UInt64.self, module), 3) == [1, 2, 3])
        #expect(try memory.number(UInt64.self, module + 8) == 3)
        #expect(try memory.string(memory.number(UInt64.self, info + 24)) == "console=ttyS0")
        #expect(try memory.number(UInt64.self, info + 32) == 0xE0000)
        #expect(try memory.number(UInt32.self, info + 48) == 4)
        let map = try memory.number(UInt64.self, info + 40)
        #expect(try memory.number(UInt64.self, map + 48) == 0x10_0000)
        #expect(try memory.bytes(0x100_0000, 100) == [UInt8](1...100))
    }

    @Test func vmlinuxWithoutNoteIsEnteredIn64BitMode() throws {
        let image = makeELF(is64Bit: true, entry: 0x100_0010, segments: [code])
        let request = try makeRequest(image)
        let memory = try makeMemory(request.layout)
        try memory.write([UInt8](repeating: 0xEE, count: 0x2000), at: GuestPhysicalAddress(0x100_0000))
        let state = try BootLoader.plan(request).write(to: memory)
        #expect(state.bootProtocol == .linux64 && state.registers.rip == 0x100_0010)
        #expect(try memory.bytes(0x100_0064, 0x2000 - 100).allSatisfy { $0 == 0 }, "bss is zeroed")
        let parameters = state.registers.rsi
        #expect(try memory.string(memory.number(UInt32.self, parameters + 0x228)) == "console=ttyS0")
        #expect(try memory.number(UInt16.self, parameters + 0x1FE) == 0xAA55)
    }

    @Test(
        arguments: [
            ("32-bit without note", false, [], 0x100_0000, .unsupported),
            ("entry outside", true, [], 0x200_0000, .invalidHeader),
            (
                "outside RAM", true, [SyntheticSegment(physicalAddress: 0x8000_0000, bytes: [1])], 0x100_0000,
                .kernelDoesNotFit
            ),
            (
                "in the BIOS range", true, [SyntheticSegment(physicalAddress: 0xF_0000, bytes: [1])], 0x100_0000,
                .kernelDoesNotFit
            ),
            (
                "wraps", true, [SyntheticSegment(physicalAddress: .max, bytes: [1], memorySize: 16)], 0x100_0000,
                .kernelDoesNotFit
            ),
            (
                "huge", true, [SyntheticSegment(physicalAddress: 0x10_0000, bytes: [1], memorySize: .max)], 0x100_0000,
                .kernelDoesNotFit
            ),
            ("overlap", true, [SyntheticSegment(physicalAddress: 0x100_1000, bytes: [1])], 0x100_0000, .invalidHeader),
            (
                "file larger than memory", true,
                [SyntheticSegment(physicalAddress: 0x20_0000, bytes: [1, 2], memorySize: 1)], 0x100_0000, .invalidHeader
            ),
            ("PVH entry outside", true, [makePVHNote(entry: 1)], 0x100_0000, .invalidHeader),
        ] as [(String, Bool, [SyntheticSegment], UInt64, BootError.Kind)])
    func impossibleImage(
        name: String, is64Bit: Bool, more: [SyntheticSegment], entry: UInt64, expected: BootError.Kind
    ) throws {
        var first = code
        if !is64Bit { first.virtualAddress = nil }
        let image = makeELF(is64Bit: is64Bit, entry: entry, segments: [first] + more)
        #expect(kind(try makeRequest(image)) == expected)
    }

    @Test(
        arguments: [
            (4, [3], .unsupported), (5, [2], .unsupported), (18, [0xB7], .unsupported), (16, [1], .unsupported),
            (54, [1], .invalidHeader), (56, [0xFF, 0xFF], .invalidHeader), (32, [0xFF, 0xFF], .truncated),
            (64 + 32, [0xFF, 0xFF], .truncated), (64, [9], .invalidHeader),
        ] as [(Int, [UInt8], BootError.Kind)])
    func brokenHeader(offset: Int, bytes: [UInt8], expected: BootError.Kind) throws {
        var image = makeELF(is64Bit: true, entry: 0x100_0000, segments: [code])
        image.replaceSubrange(offset..<offset + bytes.count, with: bytes)
        #expect(kind(try makeRequest(image)) == expected)
    }

    @Test func everyTruncationIsAnError() throws {
        let image = makeELF(is64Bit: true, entry: 0x100_0000, segments: [code])
        for count in 1..<image.count { #expect(kind(try makeRequest(Array(image.prefix(count)))) != nil) }
        #expect(kind(try makeRequest(image)) == nil)
    }
}

@Suite struct MultibootLoaderTests {
    private func elf(is64Bit: Bool = false, flags: UInt32 = 3) -> [UInt8] {
        let code = makeMultibootHeader(flags: flags) + [UInt8](repeating: 0x90, count: 100)
        return makeELF(
            is64Bit: is64Bit, entry: 0x10_0010,
            segments: [SyntheticSegment(physicalAddress: 0x10_0000, bytes: code, memorySize: 0x3000)])
    }

    @Test func elfImageIsEnteredInProtectedMode() throws {
        let modules = [
            BootModule(file: BootFileBytes(name: "one", [1, 2, 3]), arguments: "a b"),
            BootModule(file: BootFileBytes(name: "two", [4])),
        ]
        let request = try makeRequest(elf(), modules: modules, commandLine: "x y")
        let memory = try makeMemory(request.layout)
        let state = try BootLoader.plan(request).write(to: memory)

        #expect(state.bootProtocol == .multiboot && state.registers.rip == 0x10_0010)
        #expect(state.registers.rax == 0x2BAD_B002 && state.cr0 == 0x11 && state.code.db)
        let info = state.registers.rbx
        #expect(info >= 0x3000 && info < 0xA_0000, "clear of the image and of the first 12 KiB")
        #expect(try memory.number(UInt32.self, info) == 0x24D)
        #expect(try memory.number(UInt32.self, info + 4) == 640)
        #expect(try memory.number(UInt32.self, info + 8) == 63 << 10)
        #expect(try memory.string(memory.number(UInt32.self, info + 16)) == "kernel x y")
        #expect(try memory.number(UInt32.self, info + 20) == 2)
        let list = try memory.number(UInt32.self, info + 24)
        let first = try memory.number(UInt32.self, list)
        #expect(first % 4096 == 0 && first >= 0x10_3000)
        #expect(try memory.bytes(first, 3) == [1, 2, 3])
        #expect(try memory.number(UInt32.self, list + 4) == first + 3)
        #expect(try memory.string(memory.number(UInt32.self, list + 8)) == "one a b")
        #expect(try memory.string(memory.number(UInt32.self, list + 24)) == "two")
        #expect(try memory.number(UInt32.self, info + 44) == 96)
        let map = try memory.number(UInt32.self, info + 48)
        #expect(try memory.number(UInt32.self, map) == 20)
        #expect(try memory.number(UInt64.self, map + 12) == 0xA_0000)
        #expect(try memory.string(memory.number(UInt32.self, info + 64)) == "Martlet")
    }

    @Test func addressFieldsLoadAFlatImage() throws {
        // header at file offset 16, loaded from file offset 8 to 0x200000, bss to 0x201000, entry at 0x200040
        let header = makeMultibootHeader(addresses: [0x20_0008, 0x20_0000, 0, 0x20_1000, 0x20_0040])
        let image = [UInt8](1...16) + header + [UInt8](repeating: 0xCC, count: 64)
        let request = try makeRequest(image)
        let memory = try makeMemory(request.layout)
        try memory.write([UInt8](repeating: 0xEE, count: 0x1000), at: GuestPhysicalAddress(0x20_0000))
        let state = try BootLoader.plan(request).write(to: memory)
        #expect(state.registers.rip == 0x20_0040)
        #expect(try memory.bytes(0x20_0000, image.count - 8) == Array(image[8...]))
        #expect(try memory.number(UInt8.self, 0x20_0FFF) == 0)
    }

    @Test(
        arguments: [
            ([0x1F_0000, 0x20_0000, 0, 0, 0x20_0000], .invalidHeader),
            ([0x20_0000, 0x10_0000, 0, 0, 0x10_0000], .invalidHeader),
            ([0x20_0000, 0x20_0000, 0x1F_0000, 0, 0x20_0000], .invalidHeader),
            ([0x20_0000, 0x20_0000, 0x30_0000, 0, 0x20_0000], .truncated),
            ([0x20_0000, 0x20_0000, 0, 0xFFFF_FFFF, 0x20_0000], .kernelDoesNotFit),
            ([0xF000_0000, 0xF000_0000, 0, 0, 0xF000_0000], .kernelDoesNotFit),
            ([0x20_0000, 0x20_0000, 0, 0, 0x30_0000], .invalidHeader),
        ] as [([UInt32], BootError.Kind)])
    func impossibleAddresses(addresses: [UInt32], expected: BootError.Kind) throws {
        let image = makeMultibootHeader(addresses: addresses) + [UInt8](repeating: 0, count: 64)
        #expect(kind(try makeRequest(image)) == expected)
    }

    @Test func unsupportedImages() throws {
        #expect(kind(try makeRequest(elf(is64Bit: true))) == .unsupported)
        #expect(kind(try makeRequest(elf(flags: 0x8))) == .unsupported)
        #expect(kind(try makeRequest(elf(flags: 0x4))) == nil, "a video mode is a wish")
        #expect(kind(try makeRequest(makeMultibootHeader() + [0, 0, 0, 0])) == .unsupported)
    }

    @Test func headerIsFoundOnlyWhereItMayBe() throws {
        let header = makeMultibootHeader()
        #expect(MultibootHeader([UInt8](repeating: 0, count: 8180) + header)?.offset == 8180)
        #expect(MultibootHeader([0, 0] + header) == nil, "unaligned")
        let far = BootFileBytes(name: "far", [UInt8](repeating: 0, count: 8192) + header)
        #expect(throws: BootError.self) { try BootLoader.detect(far) }
    }

    @Test func structuresMoveOutOfALowImage() throws {
        let low = SyntheticSegment(physicalAddress: 0x8000, bytes: makeMultibootHeader(), memorySize: 0x9_8000)
        let request = try makeRequest(makeELF(is64Bit: false, entry: 0x8000, segments: [low]))
        #expect(try BootLoader.plan(request).state.registers.rbx >= 0x10_0000)
    }

    @Test(
        arguments: [
            ("a", [("a", "")]), ("a b c,d", [("a", "b c"), ("d", "")]), ("a,,b,c x", [("a,b", ""), ("c", "x")]),
            ("", []), ("a,", [("a", "")]),
        ] as [(String, [(String, String)])])
    func moduleListSyntax(list: String, expected: [(String, String)]) {
        let split = BootModule.split(list)
        #expect(split.map(\.path) == expected.map(\.0) && split.map(\.arguments) == expected.map(\.1))
    }
}
