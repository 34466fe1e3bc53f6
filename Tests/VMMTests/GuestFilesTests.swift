internal import Platform
internal import Testing

@testable internal import VMM

@Suite("Files for the guest")
struct GuestFilesTests {
    @Test("An archive has the newc layout")
    func archive() {
        var archive = CpioArchive()
        archive.addDirectory("d")
        archive.addFile("d/f", contents: Array("hello".utf8))
        let bytes = archive.finished()
        func text(_ range: Range<Int>) -> String { String(decoding: bytes[range], as: UTF8.self) }
        // Header of "d": magic, inode, mode, six fields … name size; padded to four bytes.
        #expect(text(0..<6) == "070701")
        #expect(text(14..<22) == "000041ED")
        #expect(text(94..<102) == "00000002")
        #expect(text(110..<112) == "d\0")
        // "d/f" starts at 112 and has its five bytes after the name, at 112 + 110 + 4 rounded up to four: 228.
        #expect(text(112..<118) == "070701")
        #expect(text(126..<134) == "000081A4")
        #expect(text(166..<174) == "00000005")
        #expect(text(228..<233) == "hello")
        #expect(text(236..<242) == "070701")
        #expect(text(346..<356) == "TRAILER!!!")
        #expect(bytes.count.isMultiple(of: 4))
    }

    @Test(
        "Words survive the shell",
        arguments: [
            ("ls", "'ls'"), ("", "''"), ("a b", "'a b'"), ("it's", "'it'\\''s'"), ("$(x)\n`", "'$(x)\n`'"),
        ])
    func quoting(word: String, expected: String) {
        #expect(GuestCommand.quoted(word) == expected)
    }

    @Test("The guest's archive has a command only if there is one")
    func commandArchive() {
        func holds(_ archive: [UInt8], _ text: String) -> Bool {
            String(decoding: archive, as: UTF8.self).contains(text)
        }
        let shell = GuestCommand(terminalType: "xterm", columns: 100, rows: 30).archive
        #expect(holds(shell, "LINES=30 COLUMNS=100\nexport TERM='xterm'\n"))
        #expect(!holds(shell, "martlet/command"))
        let command = GuestCommand(arguments: ["echo", "a b"]).archive
        #expect(holds(command, "exec 'echo' 'a b'\n"))
        #expect(!holds(command, "TERM"))
    }

    @Test("Joined files read as one, aligned between", arguments: [0, 1, 2, 3, 4, 7, 8])
    func joined(firstCount: Int) throws {
        let first = (0..<firstCount).map { UInt8($0 + 1) }
        let second: [UInt8] = [101, 102, 103, 104, 105]
        let file = JoinedFile(BootFileBytes(name: "first", first), followedBy: second)
        let padding = [UInt8](repeating: 0, count: (4 - firstCount % 4) % 4)
        let expected = first + padding + second
        #expect(file.size == UInt64(expected.count))
        for start in 0...expected.count {
            for end in start...expected.count {
                let bytes = try file.read(count: end - start, at: UInt64(start))
                #expect(bytes == Array(expected[start..<end]), "from \(start) to \(end)")
            }
        }
        #expect(throws: BootFileError.self) { try file.read(count: expected.count + 1, at: 0) }
        #expect(throws: BootFileError.self) { try file.read(count: 1, at: .max) }
    }

    @Test(
        "Files that cannot be booted are named with the reason",
        arguments: [
            ("/nonexistent/vmlinuz", "No such file or directory"), ("/", "Is a directory"),
            ("/dev/null", "/dev/null"),
        ])
    func badFiles(path: String, reason: String) {
        let error = #expect(throws: MachineError.self) { try HostFile(path: path, role: "kernel") }
        #expect(error?.description.contains(reason) == true)
        #expect(error?.description.contains("\n") == false)
    }
}
