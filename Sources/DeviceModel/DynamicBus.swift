internal import Synchronization

/// A bus whose devices come, move and go while vCPUs use it: fixed devices, which are always there, and regions that
/// their owners move, as PCI functions do with their base addresses.
///
/// A vCPU looks things up in an immutable copy of the table of its own (`BusReader`) and takes a lock only after the
/// table has changed. First come, first served: a region that overlaps a fixed device, or another region that was there
/// before, answers nothing until that one goes.
public final class DynamicBus: Sendable {
    /// A region that its owner may move.
    public struct Claim: Sendable {
        public var owner: Int
        public var name: String
        public var base: UInt64
        public var size: UInt64
        public var device: any BusDevice

        public init(owner: Int, name: String, base: UInt64, size: UInt64, device: any BusDevice) {
            self.owner = owner
            self.name = name
            self.base = base
            self.size = size
            self.device = device
        }

        fileprivate func isSame(as other: Claim) -> Bool {
            owner == other.owner && base == other.base && size == other.size
        }
    }

    private struct Table: Sendable {
        var fixed: Bus
        /// In the order in which they came.
        var claims: [Claim] = []
        var bus: Bus
    }

    private let windows: [Range<UInt64>]
    private let table: Mutex<Table>
    private let version = Atomic<UInt64>(1)

    /// Regions take effect only inside one of `windows`.
    public init(fixed: Bus, windows: [Range<UInt64>]) {
        self.windows = windows
        table = Mutex(Table(fixed: fixed, bus: fixed))
    }

    /// Replaces the claims of `owner`; those that stay as they were keep their place in the order. Returns which of them
    /// are in effect, and those of others that came into effect or lost it by that.
    @discardableResult
    public func setClaims(_ claims: [Claim], of owner: Int) -> [Claim] {
        table.withLock { table in
            var kept = table.claims.filter { old in
                old.owner != owner || claims.contains { $0.isSame(as: old) }
            }
            for claim in claims where !kept.contains(where: { $0.isSame(as: claim) }) { kept.append(claim) }
            table.claims = kept
            var bus = table.fixed
            var effective: [Claim] = []
            for claim in kept where isAllowed(claim) {
                do throws(BusConflict) {
                    try bus.attach(any: claim.device, named: claim.name, at: claim.base, size: claim.size)
                    effective.append(claim)
                } catch {
                    // Somebody was there first.
                }
            }
            table.bus = bus
            version.add(1, ordering: .releasing)
            return effective
        }
    }

    private func isAllowed(_ claim: Claim) -> Bool {
        let (end, overflow) = claim.base.addingReportingOverflow(claim.size)
        return !overflow && windows.contains { claim.base >= $0.lowerBound && end <= $0.upperBound }
    }

    fileprivate var currentVersion: UInt64 { version.load(ordering: .acquiring) }

    fileprivate func snapshot() -> (bus: Bus, version: UInt64) {
        table.withLock { ($0.bus, currentVersion) }
    }
}

/// One thread's view of a `DynamicBus`.
public struct BusReader: Sendable {
    private let source: DynamicBus
    private var bus: Bus
    private var version: UInt64

    public init(_ source: DynamicBus) {
        self.source = source
        (bus, version) = source.snapshot()
    }

    /// The bus as it is now.
    public mutating func current() -> Bus {
        if source.currentVersion != version { (bus, version) = source.snapshot() }
        return bus
    }
}
