/// A bound on a rate, with a burst: how disks and networks are throttled.
///
/// Time-based (the generic cell rate algorithm): what is remembered is the time at which all that was taken so far is
/// paid for. An amount is taken whole while that time is at most the burst ahead, so that one request larger than the
/// burst passes too, and the next one waits the longer.
public struct TokenBucket: Sendable, Equatable {
    /// Amount per second.
    public let rate: UInt64
    /// What may pass at once after a pause.
    public let burst: UInt64
    private let burstNanoseconds: UInt64
    private var paidAt: UInt64 = 0
    /// What the division by the rate left over: small amounts at high rates are not free.
    private var remainder: UInt64 = 0

    private static let nanosecondsPerSecond: UInt64 = 1_000_000_000

    /// The rate must not be 0.
    public init(rate: UInt64, burst: UInt64) {
        precondition(rate > 0, "a rate of zero would stop the traffic for ever")
        self.rate = rate
        self.burst = burst
        burstNanoseconds = TokenBucket.nanoseconds(for: burst, rate: rate, remainder: 0).whole
    }

    /// Takes `amount` at the monotonic time `now` and returns 0, or takes nothing and returns how long to wait.
    public mutating func take(_ amount: UInt64, nowNanoseconds now: UInt64) -> UInt64 {
        let wait = waitNanoseconds(nowNanoseconds: now)
        if wait > 0 { return wait }
        if paidAt < now {
            paidAt = now
            remainder = 0
        }
        let cost = TokenBucket.nanoseconds(for: amount, rate: rate, remainder: remainder)
        let (sum, overflow) = paidAt.addingReportingOverflow(cost.whole)
        paidAt = overflow ? .max : sum
        remainder = cost.remainder
        return 0
    }

    /// How long until something can be taken; 0 for now.
    public func waitNanoseconds(nowNanoseconds now: UInt64) -> UInt64 {
        let ahead = paidAt > now ? paidAt - now : 0
        return ahead > burstNanoseconds ? ahead - burstNanoseconds : 0
    }

    /// Gives back what was taken and then not used.
    public mutating func giveBack(_ amount: UInt64) {
        let cost = TokenBucket.nanoseconds(for: amount, rate: rate, remainder: 0).whole
        paidAt = paidAt > cost ? paidAt - cost : 0
    }

    private static func nanoseconds(
        for amount: UInt64, rate: UInt64, remainder: UInt64
    ) -> (whole: UInt64, remainder: UInt64) {
        var (high, low) = amount.multipliedFullWidth(by: nanosecondsPerSecond)
        let (sum, carry) = low.addingReportingOverflow(remainder)
        low = sum
        if carry { high += 1 }
        // More than 584 years.
        guard high < rate else { return (.max, 0) }
        let (quotient, rest) = rate.dividingFullWidth((high, low))
        return (quotient, rest)
    }
}

/// The limits of one disk or network, as the person wrote them; without a value there is no limit.
public struct TrafficLimits: Sendable, Equatable {
    /// Bytes per second.
    public var bandwidth: UInt64?
    /// Requests or frames per second.
    public var operations: UInt64?
    /// Bytes that may pass at once; by default what a tenth of a second lets through.
    public var burst: UInt64?
    /// Operations that may pass at once; by default what a tenth of a second lets through.
    public var operationsBurst: UInt64?

    public init(
        bandwidth: UInt64? = nil, operations: UInt64? = nil, burst: UInt64? = nil, operationsBurst: UInt64? = nil
    ) {
        self.bandwidth = bandwidth
        self.operations = operations
        self.burst = burst
        self.operationsBurst = operationsBurst
    }

    public var isUnlimited: Bool { bandwidth == nil && operations == nil }

    /// A limiter for one direction or device.
    public func makeLimiter() -> TrafficLimiter { TrafficLimiter(self) }

    public static let keys = ["bandwidth", "operations", "burst", "operations-burst"]

    /// Sets one KEY=VALUE of an option: false when the key is none of `keys`.
    public mutating func set(_ key: Substring, to value: Substring) throws(TrafficLimitError) -> Bool {
        switch key {
        case "bandwidth": bandwidth = try TrafficLimits.amount(value, key)
        case "operations": operations = try TrafficLimits.amount(value, key)
        case "burst": burst = try TrafficLimits.amount(value, key)
        case "operations-burst": operationsBurst = try TrafficLimits.amount(value, key)
        default: return false
        }
        return true
    }

    /// 1000, 64K, 10M, 1G: K, M and G are powers of 1024.
    private static func amount(_ text: Substring, _ key: Substring) throws(TrafficLimitError) -> UInt64 {
        let digits = text.prefix { $0.isASCII && $0.isNumber }
        let shift: UInt64? =
            switch text.dropFirst(digits.count).uppercased() {
            case "": 0
            case "K": 10
            case "M": 20
            case "G": 30
            default: nil
            }
        guard let shift, let number = UInt64(digits), number > 0 else {
            throw TrafficLimitError(key: String(key), value: String(text))
        }
        let (result, overflow) = number.multipliedReportingOverflow(by: 1 << shift)
        guard !overflow else { throw TrafficLimitError(key: String(key), value: String(text)) }
        return result
    }
}

/// A limit that is no positive amount.
public struct TrafficLimitError: Error, Equatable, Sendable, CustomStringConvertible {
    public var key: String
    public var value: String

    public init(key: String, value: String) {
        self.key = key
        self.value = value
    }

    public var description: String { "'\(key)=\(value)' is no amount; write \(key)=1000, \(key)=64K or \(key)=10M." }
}

/// Both limits together: an operation passes when its bytes and itself do.
public struct TrafficLimiter: Sendable {
    private var bytes: TokenBucket?
    private var operations: TokenBucket?

    public init(_ limits: TrafficLimits) {
        bytes = limits.bandwidth.map { TokenBucket(rate: max($0, 1), burst: limits.burst ?? $0 / 10) }
        operations = limits.operations.map { TokenBucket(rate: max($0, 1), burst: limits.operationsBurst ?? $0 / 10) }
    }

    public var isUnlimited: Bool { bytes == nil && operations == nil }

    /// Takes one operation of `count` bytes and returns 0, or takes nothing and returns the nanoseconds to wait.
    public mutating func take(bytes count: Int, nowNanoseconds now: UInt64) -> UInt64 {
        let wait = waitNanoseconds(nowNanoseconds: now)
        if wait > 0 { return wait }
        _ = bytes?.take(UInt64(clamping: count), nowNanoseconds: now)
        _ = operations?.take(1, nowNanoseconds: now)
        return 0
    }

    public func waitNanoseconds(nowNanoseconds now: UInt64) -> UInt64 {
        max(bytes?.waitNanoseconds(nowNanoseconds: now) ?? 0, operations?.waitNanoseconds(nowNanoseconds: now) ?? 0)
    }

    /// Gives back an operation that did not take place.
    public mutating func giveBack(bytes count: Int) {
        bytes?.giveBack(UInt64(clamping: count))
        operations?.giveBack(1)
    }
}
