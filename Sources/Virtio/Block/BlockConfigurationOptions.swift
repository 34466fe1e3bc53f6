public import Host

/// How a disk is presented and kept.
public struct BlockConfigurationOptions: Equatable, Sendable {
    /// When a completed write is on the medium.
    public enum Cache: String, CaseIterable, Sendable {
        /// After the driver's next flush.
        case writeback
        /// The same, and the image is opened past the host's page cache.
        case none
        /// When it completes, whatever the driver says.
        case writethrough
        /// Perhaps never: flushes do nothing. For disks that are thrown away.
        case unsafe
    }

    /// Who moves the bytes while the device goes on.
    public enum Transfers: String, CaseIterable, Sendable {
        /// The host's kernel.
        case ioUring = "io_uring"
        /// Threads of this process that wait.
        case threads
    }

    /// What becomes of a request that the back end cannot execute.
    public enum ErrorAction: String, CaseIterable, Sendable {
        /// The guest gets an I/O error.
        case report
        /// It is held until somebody has it tried again, and the guest knows nothing of it.
        case stop
        /// Held where the host's disk is full, reported otherwise.
        case stopWhenFull = "enospc"
    }

    /// What GET_ID says; 20 bytes at most (Virtio 1.2 §5.2.6).
    public var serial: String
    public var queueCount: Int
    public var cache: Cache
    public var limits: TrafficLimits
    public var onError: ErrorAction
    /// nil: io_uring where the host allows it.
    public var transfers: Transfers?
    /// The exponent of a physical block's size in logical ones: 3 for 4 KiB.
    public var physicalBlockExponent: UInt8

    public static let serialLimit = 20

    public init(
        serial: String = "", queueCount: Int = 1, cache: Cache = .writeback,
        limits: TrafficLimits = TrafficLimits(), onError: ErrorAction = .report, transfers: Transfers? = nil,
        physicalBlockExponent: UInt8 = 3
    ) {
        precondition((1...16).contains(queueCount) && physicalBlockExponent < 8)
        self.serial = serial
        self.queueCount = queueCount
        self.cache = cache
        self.limits = limits
        self.onError = onError
        self.transfers = transfers
        self.physicalBlockExponent = physicalBlockExponent
    }
}
