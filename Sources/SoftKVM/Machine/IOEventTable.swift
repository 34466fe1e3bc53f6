internal import Host
internal import Hypervisor
internal import Synchronization

/// The guest's writes that signal eventfds (KVM_IOEVENTFD). vCPUs look them up in copies of their own.
final class IOEventTable: Sendable {
    struct Entry: Sendable {
        let event: IOEvent
        /// Our own end: the owner may close his.
        let notifier: EventNotifier
    }

    private let entries = Mutex<[Entry]>([])
    private let version = Atomic<UInt64>(0)

    /// False: there is one like it already, or none to remove.
    func set(_ event: IOEvent, isAssigned: Bool) throws(HostError) -> Bool {
        let entry = isAssigned ? Entry(event: event, notifier: try EventNotifier(duplicating: event.descriptor)) : nil
        return entries.withLock { entries in
            let index = entries.firstIndex { Self.isSamePlace($0.event, event) }
            if let entry {
                guard index == nil else { return false }
                entries.append(entry)
            } else {
                guard let index else { return false }
                entries.remove(at: index)
            }
            version.add(1, ordering: .releasing)
            return true
        }
    }

    private static func isSamePlace(_ one: IOEvent, _ other: IOEvent) -> Bool {
        one.address == other.address && one.isPort == other.isPort && one.length == other.length
            && one.match == other.match
    }

    /// One vCPU's copy.
    struct View: Sendable {
        private var entries: [Entry] = []
        private var version: UInt64 = 0

        /// True: the write was one of these, and is done.
        mutating func signal(_ address: UInt64, size: Int, value: UInt64, isPort: Bool, in table: IOEventTable) -> Bool
        {
            let current = table.version.load(ordering: .acquiring)
            if current != version {
                entries = table.entries.withLock { $0 }
                version = current
            }
            for entry in entries where entry.event.address == address && entry.event.isPort == isPort {
                let event = entry.event
                guard event.length == 0 || event.length == UInt32(truncatingIfNeeded: size),
                    event.match == nil || event.match == value
                else { continue }
                entry.notifier.signal()
                return true
            }
            return false
        }
    }
}
