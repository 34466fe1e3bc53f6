internal import ArgumentParser
internal import Foundation
internal import Fuzzing
internal import Testing

@testable internal import CommandLineTool

/// Files and words that people write, and others give them: taken or refused, and never more than that.
@Suite("Noise for settings")
struct SettingsFuzzTests {
    /// Pieces in a row, and now and then a byte of any value.
    private func noise(_ pieces: [String], _ count: Int, _ random: inout SeededGenerator) -> [UInt8] {
        var bytes: [UInt8] = []
        for _ in 0..<Int.random(in: 0..<count, using: &random) {
            bytes += Array((pieces.randomElement(using: &random) ?? "").utf8)
            if Int.random(in: 0..<9, using: &random) == 0 { bytes.append(.random(in: 0...255, using: &random)) }
        }
        return bytes
    }

    private static let texts = [
        "image: a.qcow2\ndisk: [b.raw, 'c.qcow2,readonly,cache=none']\nmemory: 2G\nsnapshot: true\n",
        "net: user,egress=host\npublish: ['8080:80', \"127.0.0.1:53:53/udp\"]\ncommand: [sh, -c, 'exit 3']\n",
        #"{"memory": "2G", "no-reboot": true, "append": "\u00e9\ud83d\ude00\n\/", "disk": ["a", "b"], "timeout": 30}"#,
        #"{"martlet-image": 1, "kernel": "vmlinuz", "initrd": "initrd", "append": "root=/dev/vda", "system": "x"}"#,
        "a: &x [1, 2]\nb: *x\nc: |\n  text\n  more\nd: !!str 5\n",
    ]

    @Test("Configuration files and manifests", .timeLimit(.minutes(10)))
    func files() {
        let pieces = [
            "{", "}", "[", "]", ":", ",", "\"", "\\", "- ", "\n", "a", "1", "&x ", "*x", "!!str ", "\t", "|", "'", ": ",
            "disk", "memory", "\"kernel\"", "\"martlet-image\"", "\\ud800", "1e9", "-", "null", "true", "<<: ", "%",
            "---\n", "\u{FEFF}", "\u{0}",
        ]
        for seed in FuzzSeeds(seconds: 2) {
            var random = SeededGenerator(seed: seed)
            for _ in 0..<100 {
                let bytes =
                    Bool.random(using: &random)
                    ? noise(pieces, 24, &random)
                    : Damage.done(to: Array((Self.texts.randomElement(using: &random) ?? "").utf8), using: &random)
                _ = try? JSONReader.read(bytes)
                _ = try? YAMLReader.read(bytes)
                for name in ["m.json", "m.yaml"] { _ = try? ConfigurationFile(bytes, path: name) }
                _ = try? ImageManifest(bytes, path: "i.json")
            }
        }
    }

    @Test("Brackets and references without end are no trouble", arguments: ["[", "{\"a\":", "- ", "a: &x [*x, ", "{"])
    func depth(piece: String) {
        let bytes = Array(String(repeating: piece, count: 100_000).utf8)
        #expect(throws: ConfigurationError.self) { try JSONReader.read(bytes) }
        #expect(throws: ConfigurationError.self) { try YAMLReader.read(bytes) }
    }

    @Test("Values of options", .timeLimit(.minutes(10)))
    func values() {
        let pieces = [
            ",", "=", ":", "-", "+", "/", ".", "@", "0", "1", "9999999999", "18446744073709551615", "0x", "K", "T",
            "ms",
            "rip", "port", "vector", "user", "tap", "socket", "egress", "host", "10.0.0.0/8", "::1", "[", "]", "mac",
            "52:54:00:12:34:56", "format", "qcow2", "cache", "none", "size", "unix", "limit", "burst", "٣", "é",
        ]
        let parsers: [(String) throws -> Any] = [
            AcceleratorOption.parse, SoftwareEngineOption.parse, ProcessorOption.parse, MemorySize.parse,
            TimeSpan.parse, DeviceOption.parse,
            BalloonOption.parse, DiskOption.parse, ConsoleOption.parse, PortOption.parse, ShareOption.parse,
            SocketOption.parse, NetworkOptions.parse, NetworkOptions.parsePort, TraceOption.parse, SymbolsOption.parse,
            TraceLimitOption.parse,
        ]
        for seed in FuzzSeeds(seconds: 2) {
            var random = SeededGenerator(seed: seed)
            for _ in 0..<100 {
                let text = String(decoding: noise(pieces, 12, &random), as: UTF8.self)
                for parser in parsers { _ = try? parser(text) }
            }
        }
    }
}
