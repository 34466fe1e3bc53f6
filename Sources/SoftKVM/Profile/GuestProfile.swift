internal import CHost
internal import CPU
internal import Hypervisor

/// What a vCPU was at, as its thread was sampled, and its translated code.
public struct GuestProfile: Equatable, Sendable {
    /// What executed.
    public enum Activity: Sendable {
        case translated, interpreter
        /// The assembly beside translated code.
        case helper
        case pageWalk, decoder, translator
        /// The engine's own devices: interrupt controllers, timers.
        case device
        /// The engine's run loop.
        case engine
        /// Outside of the engine: devices of the board.
        case exit
        case halted
    }

    public struct Sample: Equatable, Sendable {
        /// Of a guest instruction (in translated code the first one of its block), or only of its page.
        public var address: UInt64
        public var isPage: Bool
        public var isUser: Bool
        public var activity: Activity
        public var count: UInt64

        public init(address: UInt64, isPage: Bool = false, isUser: Bool, activity: Activity, count: UInt64) {
            self.address = address
            self.isPage = isPage
            self.isUser = isUser
            self.activity = activity
            self.count = count
        }
    }

    /// A piece of host code and the guest's block that it is for.
    public struct Block: Equatable, Sendable {
        public var hostAddress: UInt64
        public var size: UInt64
        public var guestAddress: UInt64
        public var isUser: Bool

        public init(hostAddress: UInt64, size: UInt64, guestAddress: UInt64, isUser: Bool) {
            self.hostAddress = hostAddress
            self.size = size
            self.guestAddress = guestAddress
            self.isUser = isUser
        }
    }

    public var samples: [Sample]
    public var blocks: [Block]
    /// Samples for which there was no room.
    public var lostCount: UInt64

    public init(samples: [Sample], blocks: [Block] = [], lostCount: UInt64 = 0) {
        self.samples = samples
        self.blocks = blocks
        self.lostCount = lostCount
    }

    /// About 1 kHz, and no multiple of what a guest's clock ticks at.
    static let interval: UInt64 = 1_000_000_000 / 997
}

extension GuestProfile {
    init(_ recorder: ProfileRecorder) {
        samples = recorder.samples.map { sample in
            Sample(
                address: sample.rip, isPage: sample.flags & UInt32(MARTLET_SAMPLE_PAGE) != 0,
                isUser: sample.flags & UInt32(MARTLET_SAMPLE_USER) != 0, activity: Activity(sampled: sample.at),
                count: sample.count)
        }
        blocks = recorder.blocks.map {
            Block(hostAddress: $0.host, size: $0.size, guestAddress: $0.guest, isUser: $0.isUser)
        }
        lostCount = recorder.lostCount
    }
}

extension GuestProfile.Activity {
    fileprivate init(sampled at: UInt32) {
        switch at {
        case UInt32(MARTLET_AT_TRANSLATED): self = .translated
        case UInt32(MARTLET_AT_INTERPRETER): self = .interpreter
        case UInt32(MARTLET_AT_HELPER): self = .helper
        case UInt32(MARTLET_AT_PAGE_WALK): self = .pageWalk
        case UInt32(MARTLET_AT_DECODER): self = .decoder
        case UInt32(MARTLET_AT_TRANSLATOR): self = .translator
        case UInt32(MARTLET_AT_DEVICE): self = .device
        case UInt32(MARTLET_AT_OUTSIDE): self = .exit
        case UInt32(MARTLET_AT_HALTED): self = .halted
        default: self = .engine
        }
    }
}

extension SoftVirtualCPU {
    /// Sampling begins with the first run: the timer is the running thread's.
    func startProfile() throws(HypervisorError) {
        guard observation.profiles, processor.profile == nil else { return }
        processor.prepareProfile()
        let number = processor.profile?.start(intervalNanoseconds: GuestProfile.interval) ?? 0
        guard number == 0 else {
            throw HypervisorError("The profile's timer", errorNumber: number, detail: "the host has none to spare")
        }
    }

    /// Ends sampling; on the thread that runs the vCPU. nil: it was not profiled.
    public func takeProfile() -> GuestProfile? {
        guard let recorder = processor.profile else { return nil }
        recorder.stop()
        return GuestProfile(recorder)
    }
}
