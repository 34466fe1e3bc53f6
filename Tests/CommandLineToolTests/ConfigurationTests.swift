internal import ArgumentParser
internal import Foundation
internal import Testing

@testable internal import CommandLineTool

@Suite("Configuration files")
struct ConfigurationTests {
    private func expand(_ text: String, name: String = "m.yaml", _ arguments: [String] = []) throws -> [String] {
        let scratch = try Scratch()
        let path = scratch.file(name).path
        try Data(text.utf8).write(to: URL(filePath: path))
        let all = try ExpandedArguments(["run", "--config", path] + arguments)
        // Without the path, which is another one each time.
        return all.arguments.filter { $0 != path && $0 != "--config" }
    }

    @Test(
        "Options of a file become words of the command line",
        arguments: [
            ("memory: 2G\n", ["--memory=2G"]),
            ("memory: 1073741824\ntimeout: 30\n", ["--memory=1073741824", "--timeout=30"]),
            ("image: a.qcow2\nsnapshot: true\nverbose: false\n", ["a.qcow2", "--snapshot"]),
            ("disk: [a.raw, 'b.qcow2,readonly']\n", ["--disk=a.raw", "--disk=b.qcow2,readonly"]),
            ("disk: a.raw\n", ["--disk=a.raw"]),
            ("append: \"-x  y\"\n", ["--append=-x  y"]),
            ("append: '5'\n", ["--append=5"]),
            ("command: [sh, -c, 'exit 3']\n", ["--", "sh", "-c", "exit 3"]),
            ("# nothing\n", []),
            ("", []),
            ("append: !!str 5\n", ["--append=5"]),
        ] as [(String, [String])])
    func words(text: String, words: [String]) throws {
        #expect(try expand(text) == ["run"] + words)
    }

    @Test("JSON has the same names")
    func json() throws {
        let text = #"{"memory": "2G", "no-reboot": true, "append": "\u00e9\ud83d\ude00\n\/", "disk": ["a", "b"]}"#
        #expect(
            try expand(text, name: "m.json")
                == ["run", "--memory=2G", "--no-reboot", "--append=é😀\n/", "--disk=a", "--disk=b"])
    }

    @Test(
        "The command line takes the place of the file's options",
        arguments: [
            (["--memory", "1G"], ["run", "i.raw", "--disk=a", "--memory", "1G"]),
            (["--memory=1G"], ["run", "i.raw", "--disk=a", "--memory=1G"]),
            (["--disk", "b", "--disk", "c"], ["run", "--memory=2G", "i.raw", "--disk", "b", "--disk", "c"]),
            (["other.raw"], ["run", "--memory=2G", "--disk=a", "other.raw"]),
            (
                ["-v", "--append", "x", "other.raw"],
                ["run", "--memory=2G", "--disk=a", "-v", "--append", "x", "other.raw"]
            ),
        ] as [([String], [String])])
    func overrides(arguments: [String], words: [String]) throws {
        #expect(try expand("memory: 2G\nimage: i.raw\ndisk: [a]\n", arguments) == words)
    }

    @Test("A command on the command line takes the place of the file's")
    func commandOverrides() throws {
        #expect(try expand("command: [a]\n", ["--", "b", "--config", "x"]) == ["run", "--", "b", "x"])
    }

    @Test(
        "What is wrong is said with its line, and the nearest right name",
        arguments: [
            ("memroy: 2G", 1, ["'memroy'", "'memory'"]),
            ("\n\nno_reboot: true", 3, ["'no_reboot'", "'no-reboot'"]),
            ("noReboot: true", 1, ["'no-reboot'"]),
            ("diks: a", 1, ["'disk'"]),
            ("zzzzzzzzz: 1", 1, ["martlet config schema"]),
            ("help: true", 1, ["'help'"]),
            ("config: x", 1, ["'config'"]),
            ("verbose: yes", 1, ["'verbose'", "true or false"]),
            ("memory: [1G]", 1, ["'memory'", "a list"]),
            ("memory: true", 1, ["'memory'", "a string"]),
            ("memory:", 1, ["nothing"]),
            ("append: 5", 1, ["'append'", "a number", "quotes"]),
            ("disk:\n  - a.raw\n  - 7", 3, ["'disk'"]),
            ("command: ls", 1, ["'command'", "list"]),
            ("- a", 1, ["a list"]),
            ("memory: 1G\nmemory: 2G", 2, ["twice"]),
            ("a: &x 1\nb: *x", 1, ["aliases"]),
            ("a: !!int 3", 1, ["tag"]),
            ("memory: {a: 1", 2, [",", "}"]),
            ("a: 1\n---\nb: 2", 2, ["second document"]),
            ("memory: 1G\n---\nmemory: 2G", 2, ["second document"]),
        ] as [(String, Int, [String])])
    func mistakes(text: String, line: Int, words: [String]) throws {
        let error = #expect(throws: ConfigurationFileError.self) {
            try ConfigurationFile(Array(text.utf8), path: "m.yaml")
        }
        guard case .wrong(let message)? = error else {
            Issue.record("\(String(describing: error))")
            return
        }
        #expect(message.hasPrefix("m.yaml:\(line): "), "\(message)")
        for word in words { #expect(message.contains(word), "\(message)") }
    }

    @Test(
        "JSON that is none",
        arguments: [
            "", "{", "{\"memory\"}", "{\"memory\":}", "{\"memory\":\"1G\",}", "[1,]", "{\"a\":01}", "{\"a\":1.}",
            "{\"memory\":\"a\\\"]\" , \n }", "[[1,2],]",
            "{\"a\":\"\\x\"}", "{\"a\":\"\\ud800\"}", "{\"a\":\"\u{1}\"}", "{} {}", "nul", "{\"a\":1,\"a\":2}",
            "\"open", "{\"a\":\"\n\"}", String(repeating: "[", count: 100_000),
        ])
    func brokenJSON(text: String) {
        #expect(throws: ConfigurationError.self) { try JSONReader.read(Array(text.utf8)) }
    }

    @Test(
        "JSON as Foundation reads it",
        arguments: [
            "{\"a\": [1, -0.5e+3, true, null, \"x\\\"y\"], \"b\": {}}", " [ ] ", "[\"\\ud83d\\ude00\\/\\u00e4\", 7]",
            "[\"\\\\ud83d\\\\ude00\"]", "{\n\t\"a\":1,\n\t\"b\" : [\t\"~\" , \"true\",\"0x1F\" ]\n}",
            "[\"# none\", \"a: b\", \"- c\", \"\", \" spaces  stay \"]",
        ])
    func jsonOracle(text: String) throws {
        func plain(_ node: ConfigurationNode) -> NSObject {
            switch node.value {
            case .string(let text): text as NSString
            case .number(let text): NSNumber(value: Double(text) ?? .nan)
            case .bool(let isTrue): NSNumber(value: isTrue)
            case .null: NSNull()
            case .sequence(let items): items.map(plain) as NSArray
            case .mapping(let members):
                Dictionary(uniqueKeysWithValues: members.map { ($0.name, plain($0.value)) }) as NSDictionary
            }
        }
        let mine = plain(try JSONReader.read(Array(text.utf8)))
        let theirs = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? NSObject
        #expect(mine == theirs)
    }

    @Test("Every option is in the schema, and the schema is JSON")
    func schema() throws {
        let text = RunOptionTable.run.schema.text()
        let object = try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
        let properties = try #require(object["properties"] as? [String: Any])
        let expected = [
            "image", "kernel", "memory", "disk", "snapshot", "no-reboot", "command", "trace-limit", "verbose",
        ]
        for name in expected { #expect(properties[name] != nil, "\(name)") }
        #expect(properties["config"] == nil && properties["help"] == nil)
        #expect((properties["accel"] as? [String: Any])?["enum"] as? [String] == ["auto", "kvm", "soft"])
        #expect((properties["snapshot"] as? [String: Any])?["type"] as? String == "boolean")
    }

    @Test(
        "A wrong value is said with the file's line", .enabled(if: Martlet.isBuilt, "the release binary is not built"))
    func wrongValue() async throws {
        let scratch = try Scratch()
        try Data("# a machine\nmemory: 12x\n".utf8).write(to: scratch.file("m.yaml"))
        let result = try await Martlet.run(["run", "--config", scratch.file("m.yaml").path])
        #expect(result.status == 64)
        #expect(result.errors.contains("m.yaml:2: ") && result.errors.contains("'12x'"), "\(result.errors)")
        #expect(result.errorLines.count == 1)
        let missing = try await Martlet.run(["run", "--config", scratch.file("none.yaml").path])
        #expect(missing.status == 125 && missing.errors.contains("No such file"), "\(missing.errors)")
        let twice = try await Martlet.run(["run", "--config", "a", "--config", "b"])
        #expect(twice.status == 64 && twice.errors.contains("twice"), "\(twice.errors)")
    }
}
