internal import GuestMemory
internal import Net
internal import Synchronization

/// The control queue (Virtio 1.2 §5.1.6.5).
extension VirtioNet {
    func handleCommands(_ context: VirtioContext) -> Bool {
        guard context.has(NetFeature.controlQueue) else { return false }
        let queue = context.queues[controlQueue(context.features)]
        return queue.drain { chain in
            do throws(GuestMemoryFault) {
                let bytes = try chain.readable.read(from: context.memory, limit: NetCommand.limit)
                guard bytes.count >= NetCommand.headerSize, chain.writable.count > 0 else {
                    queue.complete(chain, written: 0)
                    return context.fail("queue \(queue.index): a command has no header or no place for its answer")
                }
                // What was cut off is no command that we know.
                let isDone =
                    bytes.count == chain.readable.count
                    && perform(bytes[0], bytes[1], bytes.dropFirst(NetCommand.headerSize), context)
                let written = try chain.writable.write(
                    [isDone ? NetCommand.ok : NetCommand.error], to: context.memory)
                queue.complete(chain, written: written)
            } catch {
                queue.complete(chain, written: 0)
                context.fail("queue \(queue.index): \(error)")
            }
        }
    }

    /// False: it is no command that the driver may give, or not with these data.
    private func perform(
        _ class: UInt8, _ command: UInt8, _ data: ArraySlice<UInt8>, _ context: VirtioContext
    ) -> Bool {
        switch `class` {
        case NetCommand.Class.receive: return setReceiveMode(command, data, context)
        case NetCommand.Class.mac: return setAddresses(command, data, context)
        case NetCommand.Class.vlan:
            guard let identifier = number(data, 2), context.has(NetFeature.controlVLAN),
                command == NetCommand.vlanAdd || command == NetCommand.vlanDelete
            else { return false }
            return state.withLock {
                $0.filter.setVLAN(UInt16(truncatingIfNeeded: identifier), command == NetCommand.vlanAdd)
            }
        case NetCommand.Class.announce:
            guard command == NetCommand.announceAcknowledge, context.has(NetFeature.guestAnnounce) else {
                return false
            }
            state.withLock { $0.mustAnnounce = false }
            return true
        case NetCommand.Class.multiqueue:
            guard let count = number(data, 2), command == NetCommand.queuePairsSet,
                context.has(NetFeature.multiqueue), count >= 1, count <= UInt64(options.queuePairs)
            else { return false }
            state.withLock { $0.activePairs = Int(count) }
            return true
        case NetCommand.Class.guestOffloads: return setGuestOffloads(command, data, context)
        default: return false
        }
    }

    /// A number of exactly so many bytes.
    private func number(_ data: ArraySlice<UInt8>, _ size: Int) -> UInt64? {
        data.count == size ? littleEndian(Array(data), at: 0, count: size) : nil
    }

    private func setReceiveMode(_ command: UInt8, _ data: ArraySlice<UInt8>, _ context: VirtioContext) -> Bool {
        let isExtra = command > NetCommand.Receive.allMulticast
        guard let value = number(data, 1), value <= 1,
            context.has(isExtra ? NetFeature.controlReceiveExtra : NetFeature.controlReceive)
        else { return false }
        let isOn = value == 1
        return state.withLock { state in
            switch command {
            case NetCommand.Receive.promiscuous: state.filter.isPromiscuous = isOn
            case NetCommand.Receive.allMulticast: state.filter.allMulticast = isOn
            case NetCommand.Receive.allUnicast: state.filter.allUnicast = isOn
            case NetCommand.Receive.noMulticast: state.filter.noMulticast = isOn
            case NetCommand.Receive.noUnicast: state.filter.noUnicast = isOn
            case NetCommand.Receive.noBroadcast: state.filter.noBroadcast = isOn
            default: return false
            }
            return true
        }
    }

    private func setAddresses(_ command: UInt8, _ data: ArraySlice<UInt8>, _ context: VirtioContext) -> Bool {
        switch command {
        case NetCommand.macTableSet:
            guard context.has(NetFeature.controlReceive) else { return false }
            return state.withLock { $0.filter.setTables(data) }
        case NetCommand.macAddressSet:
            guard context.has(NetFeature.controlMAC), data.count == 6 else { return false }
            let address = MACAddress(rawValue: data.reduce(0) { $0 << 8 | UInt64($1) })
            guard address.isUsable else { return false }
            state.withLock { $0.mac = address }
            return true
        default: return false
        }
    }

    private func setGuestOffloads(_ command: UInt8, _ data: ArraySlice<UInt8>, _ context: VirtioContext) -> Bool {
        guard command == NetCommand.guestOffloadsSet, context.has(NetFeature.controlGuestOffloads),
            let wanted = number(data, 8), wanted & ~(context.features & NetFeature.guestOffloads) == 0,
            accepts(features: wanted)
        else { return false }
        state.withLock { $0.guestOffloads = wanted }
        setReceiveOffloads(wanted, context.log)
        return true
    }
}
