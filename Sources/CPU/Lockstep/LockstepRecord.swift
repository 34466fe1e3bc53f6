internal import CHost

/// One answer from outside the processor, as the primary got it and the shadow gets it again.
struct OutsideAnswer {
    enum Kind: UInt8 {
        case memoryMapped
        case port
        case readMSR
        case writeMSR
        case readCR8
        case writeCR8
        case timeStamp
        case random
    }

    var kind: Kind
    var isWrite = false
    var size: UInt32 = 0
    var address: UInt64 = 0
    /// What a write wrote.
    var written: UInt64 = 0
    /// What a read got.
    var value: UInt64 = 0
    /// The hook's result.
    var status: Int32 = 0
    /// What the engine changed in the primary's state meanwhile.
    var apicBase: UInt64 = 0
    var cr8: UInt64 = 0
    var tscOffset: UInt64 = 0
    /// What it wrote to guest memory meanwhile: a place in `LockstepRecord.writes`, and how many.
    var firstWrite = 0
    var writeCount = 0

    var description: String {
        let what: String =
            switch kind {
            case .memoryMapped: "a device \(isWrite ? "write" : "read") of \(size) bytes at \(hexadecimal(address))"
            case .port: "a port \(isWrite ? "write" : "read") of \(size) bytes at \(hexadecimal(address))"
            case .readMSR: "RDMSR \(hexadecimal(address))"
            case .writeMSR: "WRMSR \(hexadecimal(address))"
            case .readCR8: "a read of CR8"
            case .writeCR8: "a write of CR8"
            case .timeStamp: "a read of the time-stamp counter"
            case .random: "a random number"
            }
        return isWrite ? "\(what), value \(hexadecimal(written))" : what
    }
}

/// One processor of the two, as the context of its hooks.
private final class Side {
    unowned let record: LockstepRecord
    let isShadow: Bool

    init(_ record: LockstepRecord, isShadow: Bool) {
        self.record = record
        self.isShadow = isShadow
    }
}

private func exchange(_ context: UnsafeMutableRawPointer?, _ question: OutsideAnswer) -> OutsideAnswer {
    guard let context else { return question }
    // SAFETY: the context is a side of a record whose processors are running.
    return Unmanaged<Side>.fromOpaque(context)._withUnsafeGuaranteedRef { side in
        side.isShadow ? side.record.replay(question) : side.record.ask(question)
    }
}

/// The hooks of both processors: the primary's ask the engine and write down what they got, the shadow's read it.
final class LockstepRecord {
    private unowned let primary: Processor
    private unowned let shadow: Processor
    private let memory: LockstepMemory
    private var engine = martlet_cpu_hooks()
    private var answers: [OutsideAnswer] = []
    private var next = 0
    private var writes: [(address: UInt64, bytes: [UInt8])] = []
    private var isAsking = false
    private lazy var recordingSide = Side(self, isShadow: false)
    private lazy var replayingSide = Side(self, isShadow: true)
    /// The shadow asked for something else than the primary.
    private(set) var mismatch: String?

    init(primary: Processor, shadow: Processor, memory: LockstepMemory) {
        self.primary = primary
        self.shadow = shadow
        self.memory = memory
        answers.reserveCapacity(4096)
    }

    // MARK: Around what both do

    /// The primary's hooks are the recording ones until `end()`.
    func begin() {
        answers.removeAll(keepingCapacity: true)
        writes.removeAll(keepingCapacity: true)
        next = 0
        engine = primary.state.pointee.hooks
        Self.install(recordingSide, in: primary.state, like: engine)
        Self.install(replayingSide, in: shadow.state, like: engine)
    }

    /// Between units: what was recorded is done with.
    func nextUnit() {
        checkThatAllWasReplayed()
        answers.removeAll(keepingCapacity: true)
        writes.removeAll(keepingCapacity: true)
        next = 0
    }

    func end() {
        primary.state.pointee.hooks = engine
        primary.state.pointee.host_tsc = nil
        checkThatAllWasReplayed()
    }

    private func checkThatAllWasReplayed() {
        if next != answers.count, mismatch == nil {
            mismatch = "the translator asked for \(answers[next].description), the interpreter did not"
        }
    }

    /// The engine wrote `count` bytes at `address` into the guest's memory, on the processor's own thread.
    func noteHostWrite(_ address: UInt64, count: UInt64) {
        if isAsking, let bytes = memory.read(Int(count), at: address) {
            writes.append((address, bytes))
        } else {
            memory.copyRange(address, count: count)
            shadow.dropCode(address, count: count)
        }
    }

    // MARK: Recording

    fileprivate func ask(_ question: OutsideAnswer) -> OutsideAnswer {
        var answer = question
        answer.firstWrite = writes.count
        isAsking = true
        consult(&answer)
        isAsking = false
        let s = primary.state
        answer.writeCount = writes.count - answer.firstWrite
        answer.apicBase = s.pointee.apic_base
        answer.cr8 = s.pointee.cr8
        answer.tscOffset = s.pointee.tsc_offset
        answers.append(answer)
        return answer
    }

    // MARK: Replaying

    /// The recorded answer to `question`, if that is what the primary asked for next.
    fileprivate func replay(_ question: OutsideAnswer) -> OutsideAnswer {
        guard mismatch == nil else { return question }
        guard next < answers.count else {
            mismatch = "the interpreter asked for \(question.description), the translator did not"
            return question
        }
        let answer = answers[next]
        guard answer.kind == question.kind, answer.isWrite == question.isWrite, answer.size == question.size,
            answer.address == question.address, answer.written == question.written
        else {
            mismatch =
                "the translator asked for \(answer.description), the interpreter for \(question.description)"
            return question
        }
        next += 1
        for write in writes[answer.firstWrite..<answer.firstWrite + answer.writeCount] {
            memory.write(write.bytes, at: write.address)
            shadow.dropCode(write.address, count: UInt64(write.bytes.count))
        }
        let s = shadow.state
        s.pointee.apic_base = answer.apicBase
        s.pointee.cr8 = answer.cr8
        s.pointee.tsc_offset = answer.tscOffset
        return answer
    }

    // MARK: Hooks

    private static func install(_ side: Side, in s: State, like engine: martlet_cpu_hooks) {
        var hooks = martlet_cpu_hooks()
        hooks.context = Unmanaged.passUnretained(side).toOpaque()
        if engine.mmio != nil {
            hooks.mmio = { context, address, size, isWrite, value in
                let written = isWrite != 0 ? value.pointee : 0
                let answer = exchange(
                    context,
                    OutsideAnswer(
                        kind: .memoryMapped, isWrite: isWrite != 0, size: size, address: address, written: written))
                if isWrite == 0 { value.pointee = answer.value }
                return answer.status
            }
        }
        if engine.port != nil {
            hooks.port = { context, port, size, isWrite, value in
                let written = isWrite != 0 ? UInt64(value.pointee) : 0
                let answer = exchange(
                    context,
                    OutsideAnswer(
                        kind: .port, isWrite: isWrite != 0, size: size, address: UInt64(port), written: written))
                if isWrite == 0 { value.pointee = UInt32(truncatingIfNeeded: answer.value) }
                return answer.status
            }
        }
        installRegisterHooks(&hooks, like: engine)
        s.pointee.hooks = hooks
        s.pointee.host_tsc = { context in exchange(context, OutsideAnswer(kind: .timeStamp)).value }
        s.pointee.host_random = { context, isSeed, value in
            let answer = exchange(context, OutsideAnswer(kind: .random, address: isSeed != 0 ? 1 : 0))
            value.pointee = answer.value
            return answer.status
        }
    }

    private static func installRegisterHooks(_ hooks: inout martlet_cpu_hooks, like engine: martlet_cpu_hooks) {
        if engine.read_msr != nil {
            hooks.read_msr = { context, index, value in
                let answer = exchange(context, OutsideAnswer(kind: .readMSR, address: UInt64(index)))
                value.pointee = answer.value
                return answer.status
            }
        }
        if engine.write_msr != nil {
            hooks.write_msr = { context, index, value in
                exchange(
                    context, OutsideAnswer(kind: .writeMSR, isWrite: true, address: UInt64(index), written: value)
                ).status
            }
        }
        if engine.read_cr8 != nil {
            hooks.read_cr8 = { context in exchange(context, OutsideAnswer(kind: .readCR8)).value }
        }
        if engine.write_cr8 != nil {
            hooks.write_cr8 = { context, value in
                _ = exchange(context, OutsideAnswer(kind: .writeCR8, isWrite: true, written: value))
            }
        }
    }

    /// Asks the engine (or the clock) and completes `question` with what came back.
    private func consult(_ question: inout OutsideAnswer) {
        let context = engine.context
        let isWrite: Int32 = question.isWrite ? 1 : 0
        switch question.kind {
        case .memoryMapped:
            question.value = question.written
            question.status = engine.mmio?(context, question.address, question.size, isWrite, &question.value) ?? 1
        case .port:
            let port = UInt16(truncatingIfNeeded: question.address)
            var value = UInt32(truncatingIfNeeded: question.written)
            question.status = engine.port?(context, port, question.size, isWrite, &value) ?? 1
            question.value = UInt64(value)
        case .readMSR:
            let index = UInt32(truncatingIfNeeded: question.address)
            question.status = engine.read_msr?(context, index, &question.value) ?? 1
        case .writeMSR:
            let index = UInt32(truncatingIfNeeded: question.address)
            question.status = engine.write_msr?(context, index, question.written) ?? 1
        case .readCR8: question.value = engine.read_cr8?(context) ?? 0
        case .writeCR8: engine.write_cr8?(context, question.written)
        case .timeStamp: question.value = alu_rdtsc()
        case .random:
            question.status = martlet_host_random(Int32(truncatingIfNeeded: question.address), &question.value)
        }
    }
}
