internal import Synchronization

/// Drives an interrupt line from a device's state without holding the device's lock.
///
/// Two vCPUs may change the device at once. Each computed its level under the device's lock, but they could reach the
/// line in the other order and leave it wrong for good. So the level is computed again here, under a lock of its own.
public final class LineDriver: Sendable {
    private let line: any InterruptLine
    private let lastLevel: Mutex<Bool>

    /// `level` is what the line is at already: false at power-on.
    public init(_ line: any InterruptLine, level: Bool = false) {
        self.line = line
        lastLevel = Mutex(level)
    }

    /// Brings the line to what `currentLevel` says now. Lock order: this driver, then the device's state.
    public func update(_ currentLevel: () -> Bool) {
        lastLevel.withLock { last in
            let level = currentLevel()
            guard level != last else { return }
            last = level
            line.setLevel(level)
        }
    }

    /// Tells the line again: after a restore, when the interrupt controller may not have the level.
    public func announce(_ currentLevel: () -> Bool) {
        lastLevel.withLock { last in
            last = currentLevel()
            line.setLevel(last)
        }
    }
}
