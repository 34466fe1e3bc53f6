internal import CHost

/// What was being done when a difference was found.
struct LockstepUnit {
    var rip: UInt64 = 0
    var firstCount: UInt64 = 0
    var lastCount: UInt64 = 0
    /// Up to here RAM is known to have been equal.
    var checkedCount: UInt64 = 0
    /// The shadow's last instructions.
    var lastInstructions: [TracedInstruction] = []
}

/// How two processors in lockstep differ, for people.
struct LockstepDifference {
    enum Kind {
        case registers
        /// They stopped for other reasons.
        case stop
        /// One had a triple fault.
        case outcome
        case outside(String)
        case memory(UInt64)
    }

    let text: String

    init(_ kind: Kind, _ unit: LockstepUnit, primary: Processor, shadow: Processor, memory: LockstepMemory) {
        let (s, t) = (primary.state, shadow.state)
        var lines = [
            "lockstep: the translator and the interpreter differ: \(Self.describe(kind, s, t))",
            "  after \(s.pointee.instruction_count) instructions (translator), \(t.pointee.instruction_count) (interpreter)",
            "  in the unit of \(unit.lastCount &- unit.firstCount) instructions from rip \(hexadecimal(unit.rip))",
        ]
        lines += Self.instructions(unit.lastInstructions, shadow)
        lines += Self.registers(s, t)
        lines += Self.memory(kind, unit, primary, shadow, memory)
        text = lines.joined(separator: "\n")
    }

    private static func describe(_ kind: Kind, _ s: State, _ t: State) -> String {
        switch kind {
        case .registers: return "registers"
        case .stop: return "the translator stopped for \(stopReason(s)), the interpreter for \(stopReason(t))"
        case .outcome: return "only one of them ended with a triple fault"
        case .outside(let text): return text
        case .memory(let address): return "guest memory at \(hexadecimal(address))"
        }
    }

    private static func stopReason(_ s: State) -> String {
        switch s.pointee.stop {
        case UInt32(MARTLET_STOP_EXCEPTION):
            let error = s.pointee.exception_has_error != 0 ? ", error \(hexadecimal(s.pointee.exception_error))" : ""
            let isPageFault = s.pointee.exception_vector == UInt32(ExceptionVector.pageFault.rawValue)
            let address = isPageFault ? ", address \(hexadecimal(s.pointee.exception_cr2))" : ""
            return "exception \(s.pointee.exception_vector)\(error)\(address)"
        case UInt32(MARTLET_STOP_PORT):
            let direction = s.pointee.port_is_write != 0 ? "to" : "from"
            return "\(s.pointee.port_count) × \(s.pointee.port_size) bytes \(direction) port "
                + hexadecimal(s.pointee.port_number)
        case UInt32(MARTLET_STOP_MMIO):
            let fragment = s.mmioFragments[min(Int(s.pointee.mmio_count), Int(MARTLET_MMIO_FRAGMENTS) - 1)]
            let direction = fragment.is_write != 0 ? "to" : "from"
            return "\(fragment.size) bytes \(direction) a device at \(hexadecimal(fragment.address))"
        case UInt32(MARTLET_STOP_HALT): return "HLT"
        case UInt32(MARTLET_STOP_REPEAT): return "the rest of a repetition"
        case UInt32(MARTLET_STOP_SHUTDOWN): return "a shutdown"
        default: return "nothing"
        }
    }

    // MARK: Instructions

    private static func instructions(_ trace: [TracedInstruction], _ shadow: Processor) -> [String] {
        if trace.isEmpty { return [] }
        return ["  the interpreter's last instructions:"]
            + trace.map { instruction in
                let bytes = shadow.code(at: instruction.address, count: Int(instruction.length))
                let text = bytes.map { hexadecimal($0, digits: 2) }.joined(separator: " ")
                let name = Mnemonic(rawValue: instruction.mnemonic).map { "\($0)" } ?? "?"
                return "    \(hexadecimal(instruction.address, digits: 16))  \(padded(text, 45)) \(name)"
            }
    }

    // MARK: Registers

    private static func registers(_ s: State, _ t: State) -> [String] {
        var lines = ["  " + padded("register", 22) + padded("translator", 20) + "interpreter"]
        lines.append(
            line("flags", hexadecimal(s.flags, digits: 8), hexadecimal(t.flags, digits: 8), s.flags != t.flags))
        for field in ArchitecturalState.fields {
            let differs = ArchitecturalState.differs(field, s, t)
            let (left, right) = (value(field, s), value(field, t))
            if differs || isInteresting(field) { lines.append(line(field.name, left, right, differs)) }
        }
        return lines
    }

    /// Shown also where equal.
    private static func isInteresting(_ field: StateField) -> Bool {
        let isGeneral = field.offset < Int(MARTLET_ZERO_REGISTER) * 8
        return isGeneral || ["rip", "cpl", "mode", "cr0", "cr2", "cr3", "cr4", "efer"].contains(field.name)
    }

    private static func line(_ name: String, _ left: String, _ right: String, _ differs: Bool) -> String {
        // A vector register has a line for each side.
        if left.count > 20 {
            return "  \(padded(name, 22))\(left)\(differs ? "  <<<" : "")\n  \(padded("", 22))\(right)"
        }
        return "  \(padded(name, 22))\(padded(left, 20))\(padded(right, 20))\(differs ? "<<<" : "")"
    }

    private static func value(_ field: StateField, _ s: State) -> String {
        let bytes = UnsafeRawBufferPointer(start: UnsafeRawPointer(s) + field.offset, count: field.size)
        return bytes.reversed().map { hexadecimal($0, digits: 2) }.joined()
    }

    // MARK: Memory

    private static func memory(
        _ kind: Kind, _ unit: LockstepUnit, _ primary: Processor, _ shadow: Processor, _ memory: LockstepMemory
    ) -> [String] {
        let found: UInt64?
        if case .memory(let address) = kind {
            found = address
        } else {
            found = memory.firstDifference(primary.writtenPages, shadow.writtenPages)
        }
        guard let address = found else { return ["  guest memory is the same"] }
        let start = address & ~15
        guard let (left, right) = memory.bytes(32, at: start) else { return [] }
        return [
            "  guest memory differs first at \(hexadecimal(address)) (written after instruction \(unit.checkedCount)):",
            "    translator  \(hexadecimal(start)): \(left.map { hexadecimal($0, digits: 2) }.joined(separator: " "))",
            "    interpreter \(hexadecimal(start)): \(right.map { hexadecimal($0, digits: 2) }.joined(separator: " "))",
        ]
    }
}

extension Processor {
    /// Code bytes at an address of the current context, as many as are mapped. Only for reports: what a walk of the page
    /// tables leaves behind stays.
    fileprivate func code(at address: UInt64, count: Int) -> [UInt8] {
        let s = state
        let saved = (
            s.pointee.stop, s.pointee.exception_vector, s.pointee.exception_error, s.pointee.exception_has_error,
            s.pointee.exception_cr2
        )
        var bytes: [UInt8] = []
        while bytes.count < count, let byte = codeByte(s, address &+ UInt64(bytes.count)) { bytes.append(byte) }
        s.pointee.stop = saved.0
        s.pointee.exception_vector = saved.1
        s.pointee.exception_error = saved.2
        s.pointee.exception_has_error = saved.3
        s.pointee.exception_cr2 = saved.4
        return bytes
    }
}

private func codeByte(_ s: State, _ address: UInt64) -> UInt8? {
    guard let linear = fetchAddress(s, address),
        let translation = translate(s, linear, AccessRequest(isFetch: true, isUser: s.pointee.cpl == 3)),
        let slot = findSlot(s, translation.guestPhysical), let host = slot.pointee.host
    else { return nil }
    return host[Int(translation.guestPhysical &- slot.pointee.guest_physical)]
}

func hexadecimal(_ value: some FixedWidthInteger & UnsignedInteger, digits: Int = 0) -> String {
    let text = String(value, radix: 16)
    let zeros = String(repeating: "0", count: max(0, digits - text.count))
    return digits == 0 ? "0x" + text : zeros + text
}

private func padded(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(1, width - text.count))
}
