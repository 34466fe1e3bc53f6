internal import CHost
internal import CTestHost
import Testing

@testable import CPU

/// One form of a row of the table: everything but register numbers.
struct WideFormKey {
    var encoding: WideEncoding
    var map: UInt8
    var pp: UInt8
    var opcode: UInt8
    var w: Bool
    var length: UInt8
    var b: Bool
    var isMemory: Bool
    var number: UInt8

    /// All forms of a map that the host can execute.
    static func all(_ encoding: WideEncoding, map: UInt8) -> [(WideFormKey, WideEntry)] {
        var result: [(WideFormKey, WideEntry)] = []
        for opcode in UInt8(0)...255 {
            for pp in UInt8(0)..<4 {
                for bits in UInt8(0)..<4 {
                    for length in UInt8(0)..<(encoding == .vex ? 2 : 4) {
                        for number in UInt8(0)..<16 {
                            let key = WideFormKey(
                                encoding: encoding, map: map, pp: pp, opcode: opcode, w: bits & 1 != 0, length: length,
                                b: encoding == .evex && bits & 2 != 0, isMemory: number >= 8, number: number & 7)
                            if encoding == .vex, bits & 2 != 0 { continue }
                            guard let entry = key.entry, entry.isAvailable(encoding, length: length) else { continue }
                            if entry.extensions == 0xFF, key.number > 0 { continue }
                            result.append((key, entry))
                        }
                    }
                }
            }
        }
        return result
    }

    var entry: WideEntry? {
        WideTable.shared.entry(
            encoding, map: map, prefix: VectorPrefix(rawValue: Int(pp)) ?? .none, opcode: opcode,
            modrm: (isMemory ? 0 : 0xC0) | number << 3, w: w, length: length, b: b)
    }
}

/// VEX and EVEX instructions: the engine against the host's own processor.
@Suite(.serialized, .enabled(if: VectorUnit.has(.avx), "the host's processor has no AVX"))
struct WideHostTests {
    private static let general: [UInt8] = [0, 1, 2, 3, 5, 6, 8, 9, 10, 11, 12, 13]

    static func number(
        _ file: VectorOperand, _ encoding: WideEncoding, _ random: inout Random
    ) -> UInt8 {
        switch file {
        case .xmm: UInt8(random.below(encoding == .evex ? 32 : 16))
        case .mask: UInt8(random.below(8))
        case .general: random.pick(general)
        case .none, .mm: 0
        }
    }

    /// A form with random registers.
    static func example(_ key: WideFormKey, _ entry: WideEntry, _ random: inout Random) -> WideCase {
        var c = WideCase(
            encoding: key.encoding, map: key.map, pp: key.pp, opcode: key.opcode, w: key.w, length: key.length,
            b: key.b)
        c.reg = entry.shape.reg == .none ? key.number : number(entry.shape.reg, key.encoding, &random)
        c.v = number(entry.shape.v, key.encoding, &random)
        c.rm = key.isMemory ? nil : number(entry.shape.rm, key.encoding, &random)
        if entry.traits.contains(.immediate) { c.immediate = UInt8(truncatingIfNeeded: random.next()) }
        if entry.traits.contains(.gathers) {
            let others = (0..<UInt8(key.encoding == .evex ? 32 : 16)).filter { $0 != c.reg && $0 != c.v }
            c.index = random.pick(others)
            c.scale = UInt8(random.below(4))
            if c.v == c.reg { c.v = others.first { $0 != c.index } ?? 0 }
            if key.encoding == .evex { c.v = 0 }
        }
        if key.encoding == .evex, !entry.traits.contains(.unmasked),
            random.chance(2) || entry.traits.contains(.needsMask)
        {
            c.mask = UInt8(1 + random.below(7))
            let destination = entry.traits.contains(.writesRM) ? entry.shape.rm : entry.shape.reg
            let isStore = key.isMemory && entry.traits.contains(.writesRM)
            c.zeroes = !isStore && destination != .mask && !entry.traits.contains(.needsMask) && random.chance(2)
        }
        return c
    }

    /// Index registers in range of the memory, in elements of the right size.
    static func prepareGather(_ c: WideCase, _ entry: WideEntry, _ machine: inout WideMachine, _ random: inout Random) {
        guard let index = c.index else { return }
        for lane in 0..<8 {
            let low = Int64(random.below(60)) - 30
            let high = Int64(random.below(60)) - 30
            let quad = UInt64(bitPattern: low)
            let pair = UInt64(UInt32(truncatingIfNeeded: low)) | UInt64(UInt32(truncatingIfNeeded: high)) << 32
            machine.zmm[Int(index) * 8 + lane] = entry.traits.contains(.quadIndex) ? quad : pair
        }
        if !WideBench.hasAVX512 { for lane in 4..<8 { machine.zmm[Int(index) * 8 + lane] = 0 } }
    }

    static func differences(_ engine: WideMachine, _ host: WideMachine) -> [String] {
        var found: [String] = []
        for number in 0..<16 where engine.gpr[number] != host.gpr[number] {
            found.append("register \(number) \(hex(engine.gpr[number])), host \(hex(host.gpr[number]))")
        }
        if engine.flags != host.flags { found.append("flags \(hex(engine.flags)), host \(hex(host.flags))") }
        if engine.mxcsr != host.mxcsr {
            found.append("mxcsr \(hex(UInt64(engine.mxcsr))), host \(hex(UInt64(host.mxcsr)))")
        }
        for index in 0..<256 where engine.zmm[index] != host.zmm[index] {
            found.append("zmm\(index / 8)[\(index % 8)] \(hex(engine.zmm[index])), host \(hex(host.zmm[index]))")
        }
        for number in 0..<8 where engine.opmask[number] != host.opmask[number] {
            found.append("k\(number) \(hex(engine.opmask[number])), host \(hex(host.opmask[number]))")
        }
        if engine.memory != host.memory { found.append("memory") }
        return found
    }

    static let maps: [(WideEncoding, UInt8)] = [(.vex, 1), (.vex, 2), (.vex, 3), (.evex, 1), (.evex, 2), (.evex, 3)]

    /// Every form with several choices of registers, masks and states.
    @Test(arguments: maps) func everyForm(_ place: (WideEncoding, UInt8)) throws {
        let bench = WideBench()
        var random = Random(seed: UInt64(place.0.rawValue) * 8 + UInt64(place.1))
        var failures = 0
        var count = 0
        for (key, entry) in WideFormKey.all(place.0, map: place.1) {
            for _ in 0..<(place.0 == .vex ? 3 : 4) {
                let c = Self.example(key, entry, &random)
                if !check(bench, c, entry, &random) { failures += 1 }
                count += 1
                if failures > 20 { return }
            }
        }
        #expect(count > 50 || !VectorUnit.has(.avx512))
    }

    private func check(_ bench: WideBench, _ c: WideCase, _ entry: WideEntry, _ random: inout Random) -> Bool {
        guard let i = bench.prepare(c) else {
            Issue.record("\(c) is not defined")
            return false
        }
        for _ in 0..<3 {
            var machine = random.wideMachine()
            Self.prepareGather(c, entry, &machine, &random)
            let offset = entry.traits.contains(.aligned) ? 64 * random.below(3) : random.below(64)
            if entry.traits.contains(.special), c.opcode == 0xAE {
                // What LDMXCSR takes.
                machine.memory[WideBench.middle + offset + 2] = 0
                machine.memory[WideBench.middle + offset + 3] = 0
                machine.memory[WideBench.middle + offset + 1] |= 0x1F
                machine.memory[WideBench.middle + offset] |= 0x80
            }
            let expected = bench.host(c, machine, offset: offset)
            let outcome = bench.engine(i, machine, offset: offset)
            var wrong: [String] = []
            if let exception = expected.exception { wrong.append("exception \(exception) on the host") }
            if let exception = outcome.exception { wrong.append("exception \(exception)") }
            if wrong.isEmpty { wrong = Self.differences(outcome.machine, expected.machine) }
            if !wrong.isEmpty {
                let mxcsr = hex(UInt64(machine.mxcsr))
                Issue.record("\(c) at \(offset), mxcsr \(mxcsr): \(wrong.prefix(4).joined(separator: "; "))")
                return false
            }
        }
        return true
    }
}
