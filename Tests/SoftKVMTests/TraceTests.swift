internal import Hypervisor
internal import Synchronization
internal import Testing
internal import X86

@testable import SoftKVM

/// What a trace wrote.
final class TraceText: Sendable {
    private let bytes = Mutex<[UInt8]>([])

    func append(_ more: [UInt8]) { bytes.withLock { $0 += more } }

    /// Without "trace" and the time.
    var lines: [String] {
        bytes.withLock { String(decoding: $0, as: UTF8.self) }.split(separator: "\n").map {
            $0.split(separator: " ", maxSplits: 2).last.map(String.init) ?? ""
        }
    }
}

@Suite struct TraceTests {
    private func traced(_ requests: [TraceRequest], limit: UInt64 = 1000) -> (Observation, TraceText) {
        let text = TraceText()
        return (Observation(trace: Trace(requests, limit: limit, startedAt: 0) { text.append($0) }), text)
    }

    // MARK: Filters

    private static func request(_ change: (inout TraceRequest) -> Void) -> TraceRequest {
        var request = TraceRequest([.faults, .exits, .blocks])
        change(&request)
        return request
    }

    @Test(
        "A filter and the events that it lets through",
        arguments: [
            (request { _ in }, [true, true, true, true]),
            (request { $0.kinds = [.exits] }, [false, true, true, false]),
            (request { $0.isUser = true }, [true, false, false, false]),
            (request { $0.isUser = false }, [false, true, true, true]),
            (request { $0.rips = [0x100...0x1ff] }, [true, false, false, true]),
            (request { $0.rips = [0x1ff...0x1ff, 0x200...0x200] }, [false, true, false, false]),
            (request { $0.addresses = [0x5000...0x5fff] }, [true, false, false, true]),
            (request { $0.addresses = [0x6000...0x6fff] }, [false, false, true, true]),
            (request { $0.ports = [0x60...0x60] }, [true, false, false, true]),
            (
                request {
                    $0.ports = [0x3f8...0x3ff]
                    $0.addresses = [0x6000...0x6000]
                }, [false, true, true, true]
            ),
            (request { $0.vectors = [13...14] }, [true, true, true, true]),
            (request { $0.vectors = [0...13, 15...255] }, [false, true, true, true]),
            (
                request {
                    $0.isUser = false
                    $0.rips = [0...0x1ff]
                }, [false, false, false, true]
            ),
        ] as [(TraceRequest, [Bool])])
    func filters(request: TraceRequest, expected: [Bool]) {
        let events: [TraceEvent] = [
            TraceEvent(kind: .faults, rip: 0x100, isUser: true, address: 0x5678, vector: 14),
            TraceEvent(kind: .exits, rip: 0x200, isUser: false, port: 0x3f8),
            TraceEvent(kind: .exits, rip: 0x300, isUser: false, address: 0x6000),
            TraceEvent(kind: .blocks, rip: 0x1fe, isUser: false),
        ]
        #expect(events.map(request.matches) == expected)
    }

    // MARK: A guest

    /// mov ax, 0x1234; mov dx, 0x3f8; out dx, al; in al, 0x60; ud2. At 0x2000: mov [0xb8000], al by way of ds 0xb800; hlt.
    private static let program: [UInt8] = [0xb8, 0x34, 0x12, 0xba, 0xf8, 0x03, 0xee, 0xe4, 0x60, 0x0f, 0x0b]
    private static let handler: [UInt8] = [0xbb, 0x00, 0xb8, 0x8e, 0xdb, 0xa2, 0x05, 0x00, 0xf4]

    private func run(_ observation: Observation, until exits: Int = 4) throws -> RealModeMachine {
        let machine = try RealModeMachine(Self.program, observation: observation)
        machine.load(Self.handler, at: RealModeMachine.handler)
        machine.setVector(6, to: RealModeMachine.handler)
        for _ in 0..<exits {
            let exit = try machine.run()
            if exit == .io(port: IOPort(0x60), size: 1, count: 1, isWrite: false) {
                machine.cpus[0].setExitData(0x77, at: 0)
            }
        }
        return machine
    }

    @Test("Exits: a write with its value, a read once it is answered")
    func exits() throws {
        let (observation, text) = traced([TraceRequest([.exits])])
        _ = try run(observation)
        #expect(
            text.lines == [
                "exit port write 0x3f8 size 1 value 0x34 rip 0x1006 kernel",
                "exit port read 0x60 size 1 value 0x77 rip 0x1007 kernel",
                "exit memory write 0xb8005 size 1 value 0x77 rip 0x2005 kernel",
                "exit halt rip 0x2009 kernel",
            ])
    }

    @Test("Exits at one port")
    func filteredExits() throws {
        var request = TraceRequest([.exits])
        request.ports = [0x60...0x6f]
        let (observation, text) = traced([request])
        _ = try run(observation)
        #expect(
            text.lines == [
                "exit port read 0x60 size 1 value 0x77 rip 0x1007 kernel"
            ])
    }

    @Test("Faults")
    func faults() throws {
        let (observation, text) = traced([TraceRequest([.faults])])
        _ = try run(observation)
        #expect(text.lines == ["fault #UD vector 6 cr2 0x0 rip 0x1009 kernel"])
    }

    @Test("Blocks as they are decoded")
    func blocks() throws {
        let (observation, text) = traced([TraceRequest([.blocks])])
        _ = try run(observation)
        #expect(text.lines.first == "block decoded 7 bytes, 3 instructions, 16-bit, physical 0x1000 rip 0x1000 kernel")
        #expect(text.lines.allSatisfy { $0.hasPrefix("block decoded ") })
    }

    @Test("Blocks as they are entered, until the limit; the guest runs on as ever")
    func entries() throws {
        // mov cx, 5; 1: loop 1b; hlt
        let program: [UInt8] = [0xb9, 0x05, 0x00, 0xe2, 0xfe, 0xf4]
        var request = TraceRequest([.blocks])
        request.includesEntries = true
        request.rips = [0x1003...0x1003]
        let (observation, text) = traced([request])
        #expect(try RealModeMachine(program, observation: observation).run() == .halt)
        observation.trace?.flush()
        let entered = "block entered 3 bytes, 2 instructions, 16-bit rip 0x1003 kernel"
        #expect(text.lines.first == "block decoded 3 bytes, 2 instructions, 16-bit, physical 0x1003 rip 0x1003 kernel")
        // The first pass is in the block before.
        #expect(text.lines.dropFirst() == [entered, entered, entered, entered][...])

        let (limited, limitedText) = traced([request], limit: 3)
        #expect(try RealModeMachine(program, observation: limited).run() == .halt)
        #expect(limitedText.lines.count == 4)
        #expect(limitedText.lines.last == "ends: these are 3 lines; --trace-limit sets how many")
    }
}
