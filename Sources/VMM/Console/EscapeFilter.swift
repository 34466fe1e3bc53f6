/// Finds the escape sequences in what is typed at the terminal: Ctrl-A and one more key, as in QEMU and picocom.
public struct EscapeFilter: Sendable {
    public enum Action: Equatable, Sendable {
        case leave, help, pause
    }

    private static let controlA: UInt8 = 1
    private var sawPrefix = false

    public init() {}

    /// What of `bytes` goes to the guest, and what was asked of us.
    public mutating func filter(_ bytes: some Sequence<UInt8>) -> (forGuest: [UInt8], actions: [Action]) {
        var forGuest: [UInt8] = []
        var actions: [Action] = []
        for byte in bytes {
            guard sawPrefix else {
                if byte == Self.controlA { sawPrefix = true } else { forGuest.append(byte) }
                continue
            }
            sawPrefix = false
            switch byte {
            case Self.controlA: forGuest.append(byte)
            case UInt8(ascii: "x"), UInt8(ascii: "X"): actions.append(.leave)
            case UInt8(ascii: "p"), UInt8(ascii: "P"): actions.append(.pause)
            case UInt8(ascii: "h"), UInt8(ascii: "H"), UInt8(ascii: "?"): actions.append(.help)
            default: break
            }
        }
        return (forGuest, actions)
    }
}
