public import DeviceModel
internal import Synchronization

/// What a balloon offers its guest beyond inflating and statistics.
public struct BalloonOptions: Equatable, Sendable {
    /// The guest may take pages back by itself before it kills a process for want of memory.
    public var deflatesOnOOM: Bool
    /// The guest tells which pages it does not use, and they go back to the host until it uses them.
    public var reportsFreePages: Bool

    public init(deflatesOnOOM: Bool = true, reportsFreePages: Bool = true) {
        self.deflatesOnOOM = deflatesOnOOM
        self.reportsFreePages = reportsFreePages
    }
}

/// The host's hand on a machine's balloon, through all restarts of the machine.
public final class BalloonControl: Sendable {
    /// What there is to know of a balloon.
    public struct Figures: Equatable, Sendable {
        /// Pages of 4 KiB that are asked for, and that the guest has given.
        public var targetPages: UInt32
        public var actualPages: UInt32 = 0
        /// Bytes of free pages that were reported, each time that they were.
        public var reportedBytes: UInt64 = 0
        /// What the guest said last of its memory; empty: nothing yet.
        public var statistics = BalloonStatistics()
    }

    private struct State: Sendable {
        var balloon: VirtioBalloon?
        var figures: Figures

        mutating func update() {
            guard let balloon else { return }
            figures.actualPages = balloon.actualPages
            figures.reportedBytes = balloon.reportedBytes
            let statistics = balloon.lastStatistics
            if !statistics.values.isEmpty { figures.statistics = statistics }
        }
    }

    public let options: BalloonOptions
    private let state: Mutex<State>

    /// `targetPages` pages of 4 KiB are asked for from the start.
    public init(targetPages: UInt32 = 0, options: BalloonOptions = BalloonOptions()) {
        self.options = options
        state = Mutex(State(figures: Figures(targetPages: targetPages)))
    }

    /// The balloon of a machine that starts, or that goes on from an encoded `VirtioBalloonSavedState`.
    public func makeBalloon(restoring saved: [UInt8]? = nil) throws(SavedStateError) -> VirtioBalloon {
        let balloon =
            if let saved {
                VirtioBalloon(restoring: try VirtioBalloonSavedState(encoded: saved), options: options)
            } else {
                VirtioBalloon(targetPages: state.withLock { $0.figures.targetPages }, options: options)
            }
        state.withLock { $0.balloon = balloon }
        return balloon
    }

    /// The machine has ended: what its balloon said last stays.
    public func unplug() {
        state.withLock { state in
            state.update()
            state.balloon = nil
        }
    }

    /// Asks the guest to give up so many pages of 4 KiB.
    public func setTarget(pages: UInt32) {
        let balloon = state.withLock { state in
            state.figures.targetPages = pages
            return state.balloon
        }
        balloon?.setTarget(pages: pages)
    }

    /// Asks for new statistics, which will be in `figures` soon.
    public func requestStatistics() {
        let balloon = state.withLock { $0.balloon }
        _ = balloon?.statistics()
    }

    public var figures: Figures {
        state.withLock { state in
            state.update()
            return state.figures
        }
    }
}
