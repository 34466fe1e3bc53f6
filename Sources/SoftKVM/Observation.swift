/// How the software engine is looked into while it runs: nothing of it costs anything when it is off.
public struct Observation: Sendable {
    /// Sample the vCPUs' threads.
    public var profiles: Bool
    public var trace: Trace?

    public init(profiles: Bool = false, trace: Trace? = nil) {
        self.profiles = profiles
        self.trace = trace
    }

    public var isOn: Bool { profiles || trace != nil }
}
