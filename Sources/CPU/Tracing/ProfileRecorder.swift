public import CHost
internal import Glibc

/// A piece of translated code, for those who look at the host's program counter.
public struct TranslatedBlock: Equatable, Sendable {
    public var host: UInt64
    public var size: UInt64
    /// Where the block's first instruction was when it was translated: its page can be at other addresses too.
    public var guest: UInt64
    public var isUser: Bool
}

/// Counts what a vCPU is at, by a timer of its thread (CHost/profile.c), and knows where its translated blocks are.
public final class ProfileRecorder {
    private static let sampleBits: UInt32 = 18
    private static let sampleCapacity = 1 << Int(sampleBits)
    /// Blocks begin 16 bytes apart (CodeArena).
    private static let placeCapacity = CodeArena.size / 16

    private let profile: UnsafeMutablePointer<martlet_profile>
    /// Those in the arena now.
    public private(set) var blocks: [TranslatedBlock] = []

    fileprivate init(_ state: State, code: martlet_range, records: martlet_range, instructions: martlet_range) {
        profile = .allocate(capacity: 1)
        profile.initialize(
            to: martlet_profile(
                cpu: state, code: code, records: records, instructions: instructions,
                places: EngineMemory.map(Self.placeCapacity, of: martlet_code_place.self), place_count: 0,
                sample_bits: Self.sampleBits, samples: EngineMemory.map(Self.sampleCapacity, of: martlet_sample.self),
                lost: 0, stack_end: 0, timer: 0, is_running: 0))
    }

    deinit {
        martlet_profile_stop(profile)
        EngineMemory.unmap(profile.pointee.places, Self.placeCapacity)
        EngineMemory.unmap(profile.pointee.samples, Self.sampleCapacity)
        profile.deallocate()
    }

    /// Starts sampling the calling thread; 0 or the error's number.
    public func start(intervalNanoseconds: UInt64) -> Int32 {
        -Int32(truncatingIfNeeded: martlet_profile_start(profile, intervalNanoseconds))
    }

    /// Ends it, on the same thread.
    public func stop() { martlet_profile_stop(profile) }

    /// What was met so far, in no order. Not while the thread that is sampled runs, except on that thread.
    public var samples: [martlet_sample] {
        (0..<1 << Int(Self.sampleBits)).compactMap { index in
            let sample = profile.pointee.samples[index]
            return sample.count == 0 ? nil : sample
        }
    }

    /// Samples that found no room.
    public var lostCount: UInt64 { profile.pointee.lost }

    /// Counts one sample of a thread at `programCounter` with these registers: what the timer does.
    func count(registers: [UInt64], programCounter: UInt64) {
        registers.withUnsafeBufferPointer { registers in
            guard let base = registers.baseAddress else { return }
            martlet_profile_count(profile, base, UInt32(registers.count), programCounter, profile.pointee.stack_end)
        }
    }

    // MARK: Translated code

    func noteTranslated(_ code: UnsafeMutableRawPointer, size: Int, _ first: Insn, pageRIP: UInt64, isUser: Bool) {
        guard Int(profile.pointee.place_count) < Self.placeCapacity else { return }
        let host = UInt64(UInt(bitPattern: code))
        let offset = UInt32(first.pointee.page_offset)
        martlet_profile_add_place(profile, UInt32(truncatingIfNeeded: host &- profile.pointee.code.start), offset)
        blocks.append(
            TranslatedBlock(host: host, size: UInt64(size), guest: pageRIP &+ UInt64(offset), isUser: isUser))
    }

    func forgetTranslated() {
        profile.pointee.place_count = 0
        blocks.removeAll(keepingCapacity: true)
    }
}

extension Processor {
    /// Makes `profile`, before the first `run()`.
    public func prepareProfile() {
        arena.becomeVisibleToPerf()
        profile = ProfileRecorder(
            state, code: arena.codeRange, records: arena.recordRange, instructions: cache.instructionRange)
    }
}
