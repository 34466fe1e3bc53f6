/// What a request is refused with: a Linux errno, which is what FUSE replies carry.
struct ShareFault: Error, Equatable {
    /// Positive.
    let number: Int32

    init(_ number: Int32) { self.number = number }
}

/// The result of a wrapper in CHost, or the fault that its negative value stands for.
@discardableResult
func checked(_ result: Int) throws(ShareFault) -> Int {
    guard result >= 0 else { throw ShareFault(Int32(truncatingIfNeeded: 0 &- result)) }
    return result
}
