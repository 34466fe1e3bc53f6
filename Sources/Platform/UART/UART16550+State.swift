/// A FIFO of at most 16 bytes in one allocation.
struct UARTQueue: Equatable, Sendable {
    private var storage = [UInt8](repeating: 0, count: UARTFIFOControl.depth)
    private var head = 0
    private(set) var count = 0

    var isEmpty: Bool { count == 0 }
    var bytes: [UInt8] { (0..<count).map { storage[(head + $0) & 15] } }

    /// False when there is no space.
    mutating func push(_ byte: UInt8) -> Bool {
        guard count < UARTFIFOControl.depth else { return false }
        storage[(head + count) & 15] = byte
        count += 1
        return true
    }

    mutating func pop() -> UInt8? {
        guard count > 0 else { return nil }
        defer {
            head = (head + 1) & 15
            count -= 1
        }
        return storage[head]
    }

    var first: UInt8? { count > 0 ? storage[head] : nil }

    mutating func removeAll() {
        head = 0
        count = 0
    }
}

/// The UART as software sees it: registers in, registers out, no locks and no host.
struct UARTState: Sendable {
    var interruptEnable: UARTInterruptEnable = []
    var lineControl: UInt8 = 0
    var modemControl: UARTModemControl = []
    var scratch: UInt8 = 0
    var divisor: UInt16 = 12  // 9600 baud of 1.8432 MHz
    var isFIFOEnabled = false
    var triggerIndex = 0
    var received = UARTQueue()
    /// What the sink had no space for; the transmitter is empty while this is.
    var unsent = UARTQueue()
    var lineErrors: UInt8 = 0
    /// The low half of MSR.
    var modemDeltas: UInt8 = 0
    /// Set when the transmitter empties or its interrupt is enabled while empty; cleared by reading it from IIR or by
    /// writing THR (§8.6).
    var isTransmitterInterruptPending = false
    var hasCarrier = true

    var isLoopback: Bool { modemControl.contains(.loopback) }
    var receiveDepth: Int { isFIFOEnabled ? UARTFIFOControl.depth : 1 }
    var inputSpace: Int { isLoopback ? 0 : max(0, receiveDepth - received.count) }

    /// MSR's high half: the modem's lines, or in loopback our own outputs (§8.9).
    var modemLines: UInt8 {
        guard isLoopback else {
            return UARTModemStatus.clearToSend | UARTModemStatus.dataSetReady
                | (hasCarrier ? UARTModemStatus.dataCarrierDetect : 0)
        }
        return (modemControl.contains(.requestToSend) ? UARTModemStatus.clearToSend : 0)
            | (modemControl.contains(.dataTerminalReady) ? UARTModemStatus.dataSetReady : 0)
            | (modemControl.contains(.out1) ? UARTModemStatus.ringIndicator : 0)
            | (modemControl.contains(.out2) ? UARTModemStatus.dataCarrierDetect : 0)
    }

    /// Runs `change` and records what it did to the modem's lines.
    mutating func changingModemLines(_ change: (inout UARTState) -> Void) {
        let before = modemLines
        change(&self)
        let changed = (before ^ modemLines) >> 4
        // RI's delta is its trailing edge only (§8.10).
        let ring = before & ~modemLines & UARTModemStatus.ringIndicator
        modemDeltas |= (changed & ~UARTModemStatus.trailingEdgeRing) | (ring >> 4)
    }

    var lineStatus: UInt8 {
        lineErrors | (received.isEmpty ? 0 : UARTLineStatus.dataReady)
            | (unsent.isEmpty ? UARTLineStatus.holdingRegisterEmpty | UARTLineStatus.transmitterEmpty : 0)
    }

    /// The interrupt with the highest priority (§8.6 table V). The character timeout comes at once: characters here
    /// have no duration, so four of them pass at once too.
    var interrupt: UARTInterrupt {
        if interruptEnable.contains(.lineStatus), lineErrors & UARTLineStatus.errors != 0 { return .lineStatus }
        if interruptEnable.contains(.receivedData), !received.isEmpty {
            let hasReachedTrigger = !isFIFOEnabled || received.count >= UARTFIFOControl.triggers[triggerIndex & 3]
            return hasReachedTrigger ? .receivedData : .characterTimeout
        }
        if interruptEnable.contains(.transmitterEmpty), isTransmitterInterruptPending { return .transmitterEmpty }
        if interruptEnable.contains(.modemStatus), modemDeltas != 0 { return .modemStatus }
        return .none
    }

    var isDivisorLatchOpen: Bool { lineControl & UARTLineControl.divisorLatchAccess != 0 }

    mutating func read(_ register: UInt64) -> UInt8 {
        switch register {
        case UARTRegister.data:
            if isDivisorLatchOpen { return UInt8(truncatingIfNeeded: divisor) }
            return received.pop() ?? 0
        case UARTRegister.interruptEnable:
            return isDivisorLatchOpen ? UInt8(truncatingIfNeeded: divisor >> 8) : interruptEnable.rawValue
        case UARTRegister.interruptIdentification:
            let interrupt = self.interrupt
            if interrupt == .transmitterEmpty { isTransmitterInterruptPending = false }
            return interrupt.rawValue | (isFIFOEnabled ? 0xC0 : 0)
        case UARTRegister.lineControl: return lineControl
        case UARTRegister.modemControl: return modemControl.rawValue
        case UARTRegister.lineStatus:
            defer { lineErrors = 0 }
            return lineStatus
        case UARTRegister.modemStatus:
            defer { modemDeltas = 0 }
            return modemLines | modemDeltas
        default: return scratch
        }
    }

    mutating func write(_ register: UInt64, _ value: UInt8, sink: any SerialSink) {
        switch register {
        case UARTRegister.data where isDivisorLatchOpen: divisor = divisor & 0xFF00 | UInt16(value)
        case UARTRegister.data: transmit(value, sink: sink)
        case UARTRegister.interruptEnable where isDivisorLatchOpen: divisor = divisor & 0xFF | UInt16(value) << 8
        case UARTRegister.interruptEnable: enableInterrupts(UARTInterruptEnable(rawValue: value & 0x0F))
        case UARTRegister.interruptIdentification: controlFIFO(value)
        case UARTRegister.lineControl: lineControl = value
        case UARTRegister.modemControl:
            changingModemLines { $0.modemControl = UARTModemControl(rawValue: value & UARTModemControl.writable) }
        case UARTRegister.scratch: scratch = value
        default: break  // LSR and MSR: factory test only (§8.4)
        }
    }

    private mutating func transmit(_ byte: UInt8, sink: any SerialSink) {
        isTransmitterInterruptPending = false
        if isLoopback {
            if received.count >= receiveDepth || !received.push(byte) { lineErrors |= UARTLineStatus.overrun }
        } else if !unsent.isEmpty || !sink.write(byte) {
            // A guest that does not look at THRE loses bytes here, as on the real part.
            if unsent.count < receiveDepth { _ = unsent.push(byte) }
        }
        isTransmitterInterruptPending = unsent.isEmpty
    }

    /// Sends what the sink refused before.
    mutating func drain(into sink: any SerialSink) {
        guard !unsent.isEmpty else { return }
        while let byte = unsent.first, sink.write(byte) { _ = unsent.pop() }
        if unsent.isEmpty { isTransmitterInterruptPending = true }
    }

    /// Each enabling of an empty transmitter's interrupt raises it again, even if IIR reported it before: Linux's
    /// 8250 driver tests for this at start-up, and calls parts without it broken (UART_BUG_TXEN, UART_BUG_THRE).
    private mutating func enableInterrupts(_ new: UARTInterruptEnable) {
        let isNewlyEnabled = new.contains(.transmitterEmpty) && !interruptEnable.contains(.transmitterEmpty)
        interruptEnable = new
        if isNewlyEnabled { isTransmitterInterruptPending = unsent.isEmpty }
    }

    private mutating func controlFIFO(_ value: UInt8) {
        let enable = value & UARTFIFOControl.enable != 0
        // Changing the mode clears both FIFOs; the other bits count only while bit 0 is written as 1 (§8.5).
        let clearsAll = enable != isFIFOEnabled
        isFIFOEnabled = enable
        if clearsAll || (enable && value & UARTFIFOControl.clearReceiver != 0) {
            received.removeAll()
            lineErrors = 0
        }
        if clearsAll || (enable && value & UARTFIFOControl.clearTransmitter != 0), !unsent.isEmpty {
            unsent.removeAll()
            isTransmitterInterruptPending = true
        }
        triggerIndex = enable ? Int(value >> 6) : 0
    }
}
