import Fuzzing
import Glibc
import Testing
import X86

@testable import Platform

/// A file with one byte changed, without a copy of the rest.
private struct FlippedFile: BootFile {
    let original: BootFileBytes
    let position: UInt64
    let value: UInt8

    var name: String { original.name }
    var size: UInt64 { original.size }

    func read(count: Int, at offset: UInt64) throws(BootFileError) -> [UInt8] {
        var bytes = try original.read(count: count, at: offset)
        if position >= offset, position - offset < UInt64(count) { bytes[Int(position - offset)] ^= value }
        return bytes
    }
}

/// The plan of a damaged file is an error, or puts everything into RAM.
private func isHarmless(_ request: BootRequest) -> Bool {
    guard let plan = try? BootLoader.plan(request) else { return true }
    return plan.placements.allSatisfy { placement in
        guard request.layout.isUsable(base: placement.base, size: placement.count) else { return false }
        if case .file(let file, let offset, let count) = placement.content {
            return offset <= file.size && count <= file.size - offset
        }
        return true
    }
}

@Suite struct BootLoaderFuzzTests {
    private static let images: [(String, [UInt8])] = [
        ("bzImage", makeBzImage()),
        (
            "vmlinux",
            makeELF(
                is64Bit: true, entry: 0x100_0000,
                segments: [SyntheticSegment(physicalAddress: 0x100_0000, bytes: [1, 2, 3], memorySize: 0x1000)])
        ),
        (
            "pvh",
            makeELF(
                is64Bit: true, entry: 0x100_0000,
                segments: [
                    SyntheticSegment(physicalAddress: 0x100_0000, bytes: [1, 2, 3], memorySize: 0x1000),
                    makePVHNote(entry: 0x100_0000),
                ])
        ),
        (
            "multiboot",
            makeELF(
                is64Bit: false, entry: 0x10_0000,
                segments: [SyntheticSegment(physicalAddress: 0x10_0000, bytes: makeMultibootHeader())])
        ),
        (
            "flat multiboot",
            makeMultibootHeader(addresses: [0x20_0000, 0x20_0000, 0, 0x20_1000, 0x20_0000])
                + [UInt8](repeating: 1, count: 64)
        ),
    ]

    @Test(arguments: images)
    func randomDamage(name: String, image: [UInt8]) throws {
        let module = BootModule(file: BootFileBytes(name: "module", [1, 2, 3]))
        for seed in FuzzSeeds(count: 1) {
            var random = SeededGenerator(seed: seed &* 0x1_0000 &+ UInt64(image.count))
            for round in 0..<2000 {
                var damaged = image
                for _ in 0...Int(random.next() % 4) {
                    // The headers are where it matters.
                    let position = Int(random.next() % UInt64(min(image.count, 0x300)))
                    damaged[position] = random.next() & 1 == 0 ? 0xFF : UInt8(truncatingIfNeeded: random.next())
                }
                if round % 7 == 0 { damaged.removeLast(Int(random.next() % UInt64(damaged.count))) }
                #expect(isHarmless(try makeRequest(damaged, modules: [module])), "seed \(seed), round \(round)")
            }
        }
    }

    private static let kernelPath: String = {
        let home = getenv("HOME").map { String(cString: $0) } ?? "/root"
        let cache = getenv("XDG_CACHE_HOME").map { String(cString: $0) } ?? home + "/.cache"
        return cache + "/martlet/guest/vmlinuz"
    }()

    /// `--kernel` with every single-byte damage of a real kernel's first 4 KiB.
    @Test(
        .enabled(if: access(BootLoaderFuzzTests.kernelPath, R_OK) == 0, "needs the default guest's kernel in the cache")
    )
    func everyFlippedByteOfARealKernel() throws {
        let descriptor = try #require(fopen(Self.kernelPath, "r"))
        defer { fclose(descriptor) }
        fseek(descriptor, 0, SEEK_END)
        let size = ftell(descriptor)
        rewind(descriptor)
        let bytes = [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
            count = fread(buffer.baseAddress, 1, size, descriptor)
        }
        let kernel = BootFileBytes(name: "vmlinuz", bytes)
        let layout = try PhysicalMemoryMap(memorySize: 512 << 20)
        let sound = try BootLoader.plan(BootRequest(kernel: kernel, layout: layout))
        #expect(sound.state.bootProtocol == .linux64)
        for position in UInt64(0)..<4096 {
            for value in [0xFF, 0x01] as [UInt8] {
                let damaged = FlippedFile(original: kernel, position: position, value: value)
                #expect(isHarmless(BootRequest(kernel: damaged, layout: layout)))
            }
        }
    }
}
