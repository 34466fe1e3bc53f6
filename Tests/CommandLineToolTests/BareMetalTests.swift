internal import Foundation
internal import Testing

/// Our multiboot programs (Guests/multiboot-*.S) as a user runs a kernel under test.
@Suite(
    "Bare-metal guests",
    .enabled(if: Martlet.isBuilt && Martlet.hasBareMetalGuests, "no release binary or no guests: run ./scripts/test"))
struct BareMetalTests {
    private func run(_ name: String, _ options: [String] = []) async throws -> Martlet.Result {
        try await Martlet.run(
            [
                "run", "--accel", "soft", "--timeout", "5m", "--kernel",
                Martlet.bareMetalDirectory.appending(path: name).path,
            ]
                + options)
    }

    @Test("isa-debug-exit gives the process its status")
    func debugExit() async throws {
        let result = try await run("multiboot-exit.elf", ["--device", "isa-debug-exit"])
        #expect(result.status == 43)
        #expect(result.errors.isEmpty)
    }

    @Test("What the program prints is standard output")
    func output() async throws {
        let result = try await run("multiboot-hello.elf", ["--device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        #expect(result.status == 1)
        #expect(result.outputText == "Hello from Multiboot\n")
    }

    @Test("The command line, the memory map and the modules arrive")
    func information() async throws {
        let scratch = try Scratch()
        try Data("first module".utf8).write(to: scratch.file("one"))
        try Data("second".utf8).write(to: scratch.file("two"))
        let modules = "\(scratch.file("one").path) a b,\(scratch.file("two").path)"
        let result = try await run(
            "multiboot-information.elf",
            ["--device", "isa-debug-exit", "--append", "x y", "--initrd", modules, "--memory", "64M"])
        #expect(result.status == 1, "\(result.outputText)\(result.errors)")
        #expect(result.outputText.contains("multiboot-information.elf x y"))
        #expect(result.outputText.contains("first module"), "\(result.outputText)")
        #expect(result.outputText.contains("second"))
    }

    @Test("A triple fault says where")
    func tripleFault() async throws {
        let result = try await run("multiboot-fault.elf")
        #expect(result.status == 121)
        #expect(result.output.isEmpty)
        #expect(result.errorLines.count == 1)
        for word in ["triple fault", "rip 0x1000", "cr2 0x0", "last exception #"] {
            #expect(result.errors.contains(word), "\(result.errors)")
        }
    }
}
