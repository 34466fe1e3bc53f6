internal import CHost
internal import DeviceModel
internal import Host
internal import Hypervisor
internal import Synchronization
internal import X86

/// The ways of message-signalled interrupts into the engine.
///
/// Where the engine takes eventfds directly (KVM), each vector gets a GSI with a route and an eventfd when it is used
/// first, and another route when its message has changed (KVM_SET_GSI_ROUTING, KVM_IRQFD). A masked vector sends nothing,
/// so that its old route does no harm. Elsewhere, and for what the engine does not route, messages go as they are
/// (KVM_SIGNAL_MSI).
final class MessageRouter: Sendable {
    /// A vector of a function.
    struct Source: Hashable, Sendable {
        var owner: Int
        var vector: Int
    }

    private struct Route: Sendable {
        var gsi: UInt32
        var notifier: EventNotifier
        /// nil: the engine refused the last one.
        var message: PCIMessage?
    }

    private let machine: any VirtualMachine
    private let usesEvents: Bool
    private let routes = Mutex<[Source: Route]>([:])

    /// Behind the inputs of the I/O APIC.
    private static let firstGSI: UInt32 = 24
    /// KVM has 4096 routes, and those of the board's lines are among them.
    static let routeLimit = 4096 - GSIRoute.standard.count
    private let routeLimit: Int

    /// `usesEvents` nil: as the engine likes it.
    init(_ machine: any VirtualMachine, usesEvents: Bool? = nil, routeLimit: Int = MessageRouter.routeLimit) {
        self.machine = machine
        self.routeLimit = routeLimit
        self.usesEvents = usesEvents ?? machine.takesIRQEventsDirectly
    }

    func send(_ message: PCIMessage, from source: Source) {
        if usesEvents, let notifier = routes.withLock({ notifier(for: message, from: source, in: &$0) }) {
            return notifier.signal()
        }
        var msi = kvm_msi()
        msi.address_lo = UInt32(truncatingIfNeeded: message.address)
        msi.address_hi = UInt32(truncatingIfNeeded: message.address >> 32)
        msi.data = message.data
        // A message to where no local APIC is goes nowhere, as on hardware.
        try? machine.signalMSI(msi)
    }

    /// How many vectors have a GSI.
    var routeCount: Int { routes.withLock { $0.count } }

    /// The eventfd that now stands for the message; nil: the engine has no way for it.
    private func notifier(
        for message: PCIMessage, from source: Source, in routes: inout [Source: Route]
    ) -> EventNotifier? {
        if let route = routes[source], route.message == message { return route.notifier }
        guard var route = routes[source] ?? newRoute(in: routes) else { return nil }
        let isNew = routes[source] == nil
        route.message = message
        routes[source] = route
        do throws(HypervisorError) {
            try machine.setGSIRouting(Self.table(routes))
            if isNew {
                try machine.setIRQEvent(route.notifier.descriptor.rawValue, gsi: GSI(route.gsi), isAssigned: true)
            }
            return route.notifier
        } catch {
            // An address that no engine knows, or no room: the table without it is one that the engine has taken before.
            route.message = nil
            routes[source] = isNew ? nil : route
            return nil
        }
    }

    private func newRoute(in routes: [Source: Route]) -> Route? {
        guard routes.count < routeLimit, let notifier = try? EventNotifier() else { return nil }
        return Route(gsi: Self.firstGSI + UInt32(routes.count), notifier: notifier)
    }

    private static func table(_ routes: [Source: Route]) -> [GSIRoute] {
        GSIRoute.standard
            + routes.values.compactMap { route in
                route.message.map {
                    GSIRoute(gsi: GSI(route.gsi), target: .message(address: $0.address, data: $0.data))
                }
            }
    }
}
