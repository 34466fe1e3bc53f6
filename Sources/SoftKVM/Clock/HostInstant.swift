/// One reading of the host's clocks. The interrupt controllers and timers never read a clock themselves.
struct HostInstant: Equatable, Sendable {
    /// CLOCK_MONOTONIC.
    var nanoseconds: UInt64
    /// The host's time-stamp counter at the same moment.
    var tsc: UInt64
}

extension UInt64 {
    /// `self * numerator / denominator` through 128 bits, `UInt64.max` where that does not fit.
    func scaled(by numerator: UInt64, over denominator: UInt64) -> UInt64 {
        let product = multipliedFullWidth(by: numerator)
        guard product.high < denominator else { return .max }
        return denominator.dividingFullWidth(product).quotient
    }

    /// `self + other`, at most `UInt64.max`: deadlines beyond the end of time never come.
    func saturatingAdd(_ other: UInt64) -> UInt64 {
        let (sum, overflow) = addingReportingOverflow(other)
        return overflow ? .max : sum
    }

    /// `self - other`, at least 0.
    func saturatingSubtract(_ other: UInt64) -> UInt64 { self > other ? self &- other : 0 }
}
