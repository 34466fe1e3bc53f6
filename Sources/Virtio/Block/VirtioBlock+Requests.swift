internal import DeviceModel
internal import GuestMemory
internal import Host
internal import Synchronization

/// What each request asks for, done from beginning to end.
extension VirtioBlock {
    /// Does a request from beginning to end.
    func execute(_ chain: DescriptorChain, _ queue: Virtqueue, _ context: VirtioContext) {
        guard let header = header(of: chain, queue, context) else { return queue.complete(chain, written: 0) }
        settle(chain, perform(header, chain, context), queue, context)
    }

    /// Answers a request, or holds it.
    func settle(_ chain: DescriptorChain, _ outcome: BlockOutcome, _ queue: Virtqueue, _ context: VirtioContext) {
        switch outcome {
        case .status(let status): finish(chain, status, queue, context)
        case .held(let reason): hold(chain, queue.index, reason)
        }
    }

    /// nil: there is none, or no place for a status, and the driver has to reset the device.
    func header(of chain: DescriptorChain, _ queue: Virtqueue, _ context: VirtioContext) -> BlockRequestHeader? {
        do throws(GuestMemoryFault) {
            let head = try chain.readable.read(from: context.memory, limit: BlockRequestHeader.size)
            if chain.writable.count > 0, let header = BlockRequestHeader(head) { return header }
            context.fail("queue \(queue.index): a request has no header or no place for its status")
        } catch {
            context.fail("queue \(queue.index): \(error)")
        }
        return nil
    }

    /// Answers a request.
    func finish(_ chain: DescriptorChain, _ status: BlockStatus, _ queue: Virtqueue, _ context: VirtioContext) {
        queue.complete([answer(chain, status, queue, context)], interrupts: true)
    }

    /// A request with its status, to be given back. The status byte comes last: it counts only where all before it does
    /// (§2.7.8.2).
    func answer(
        _ chain: DescriptorChain, _ status: BlockStatus, _ queue: Virtqueue, _ context: VirtioContext
    ) -> UsedBuffer {
        do throws(GuestMemoryFault) {
            try chain.writable.write([status.rawValue], to: context.memory, at: chain.writable.count - 1)
            return UsedBuffer(chain, written: status == .ok ? chain.writable.count : 1)
        } catch {
            context.fail("queue \(queue.index): \(error)")
            return UsedBuffer(chain, written: 0)
        }
    }

    func perform(
        _ header: BlockRequestHeader, _ chain: DescriptorChain, _ context: VirtioContext
    ) -> BlockOutcome {
        attempt(context) { () throws(BlockError) in
            switch BlockRequestType(rawValue: header.type) {
            case .read: return try read(header, chain, context)
            case .write: return try write(header, chain, context)
            case .flush:
                try flush()
                return .ok
            case .identify: return identify(chain, context)
            case .discard, .writeZeroes: return try changeRanges(header, chain, context)
            case nil: return .unsupported
            }
        }
    }

    /// What follows from what the back end could or could not do.
    func attempt(_ context: VirtioContext, _ body: () throws(BlockError) -> BlockStatus) -> BlockOutcome {
        do throws(BlockError) {
            return .status(try body())
        } catch {
            // Who stops the machine says why.
            if !error.isUnsupported, isHeld(error) { return .held(error.description) }
            context.log.note(error.description)
            return .status(error.isUnsupported ? .unsupported : .error)
        }
    }

    /// The place on the disk; nil where it does not lie within it or is not made of sectors.
    private func place(_ sector: UInt64, count: UInt64) -> UInt64? {
        guard count % Self.sectorSize == 0, sector <= sectorCount, count / Self.sectorSize <= sectorCount - sector
        else { return nil }
        return sector * Self.sectorSize
    }

    /// Where the bytes of a read or write are in the guest and on the disk.
    struct Transfer {
        var isWrite: Bool
        var data: BufferList
        var segments: IOSegments
        var offset: UInt64
    }

    /// nil: the request asks for what cannot be.
    func transfer(_ header: BlockRequestHeader, _ chain: DescriptorChain, _ context: VirtioContext) -> Transfer? {
        let isWrite = header.type == BlockRequestType.write.rawValue
        let data =
            isWrite
            ? chain.readable.slice(from: BlockRequestHeader.size)
            : chain.writable.slice(from: 0, limit: chain.writable.count - 1)
        guard !isWrite || !backend.isReadOnly, let offset = place(header.sector, count: UInt64(data.count)),
            let segments = try? context.memory.segments(data.ranges, forWriting: !isWrite)
        else { return nil }
        return Transfer(isWrite: isWrite, data: data, segments: segments, offset: offset)
    }

    private func read(
        _ header: BlockRequestHeader, _ chain: DescriptorChain, _ context: VirtioContext
    ) throws(BlockError) -> BlockStatus {
        guard let transfer = transfer(header, chain, context) else { return .error }
        wait(bytes: transfer.data.count)
        // Told even after a failure: some of it may have been filled.
        defer { context.memory.noteTransfer(into: transfer.data.ranges) }
        try backend.read(into: transfer.segments, at: transfer.offset)
        return .ok
    }

    private func write(
        _ header: BlockRequestHeader, _ chain: DescriptorChain, _ context: VirtioContext
    ) throws(BlockError) -> BlockStatus {
        guard let transfer = transfer(header, chain, context) else { return .error }
        wait(bytes: transfer.data.count)
        try backend.write(from: transfer.segments, at: transfer.offset)
        if writesThrough(context) { try backend.flush() }
        return .ok
    }

    /// A driver that cannot flush needs no flush (§5.2.6.2).
    func writesThrough(_ context: VirtioContext) -> Bool {
        switch options.cache {
        case .unsafe: false
        case .writethrough: true
        case .writeback, .none: !context.has(BlockFeature.flush) || !state.withLock { $0.isWriteback }
        }
    }

    private func flush() throws(BlockError) {
        wait(bytes: 0)
        if options.cache != .unsafe { try backend.flush() }
    }

    func identify(_ chain: DescriptorChain, _ context: VirtioContext) -> BlockStatus {
        let serial = Array(options.serial.utf8.prefix(BlockConfigurationOptions.serialLimit))
        let room = min(chain.writable.count - 1, BlockConfigurationOptions.serialLimit)
        let bytes = serial + [UInt8](repeating: 0, count: BlockConfigurationOptions.serialLimit - serial.count)
        return (try? chain.writable.write(Array(bytes.prefix(room)), to: context.memory)) == nil ? .error : .ok
    }

    private func changeRanges(
        _ header: BlockRequestHeader, _ chain: DescriptorChain, _ context: VirtioContext
    ) throws(BlockError) -> BlockStatus {
        let data = chain.readable.slice(from: BlockRequestHeader.size)
        let zeroes = header.type == BlockRequestType.writeZeroes.rawValue
        guard !backend.isReadOnly, data.count > 0, data.count % BlockRangeSegment.size == 0,
            data.count / BlockRangeSegment.size <= Int(Self.rangeLimit),
            let bytes = try? data.read(from: context.memory, limit: data.count)
        else { return .error }
        for position in stride(from: 0, to: bytes.count, by: BlockRangeSegment.size) {
            let segment = BlockRangeSegment(bytes, at: position)
            // §5.2.6.2: reserved bits, and unmap in a discard, are not supported.
            guard segment.flags & ~(zeroes ? BlockRangeSegment.unmap : 0) == 0 else { return .unsupported }
            let count = UInt64(segment.sectorCount) * Self.sectorSize
            guard segment.sectorCount <= Self.rangeSectors, let offset = place(segment.sector, count: count) else {
                return .error
            }
            guard count > 0 else { continue }
            wait(bytes: 0)
            if zeroes {
                try backend.writeZeroes(
                    at: offset, count: count, mayUnmap: segment.flags & BlockRangeSegment.unmap != 0)
            } else {
                try backend.discard(at: offset, count: count)
            }
        }
        if zeroes, writesThrough(context) { try backend.flush() }
        return .ok
    }

    /// Waits as long as the rate limits say. Beside a ring they were looked at before the request was taken.
    private func wait(bytes: Int) {
        guard ring == nil, isLimited else { return }
        let start = HostClock.monotonicNanoseconds
        var now = start
        while now &- start < Self.longestDelay {
            let delay = limiter.withLock { $0.take(bytes: bytes, nowNanoseconds: now) }
            if delay == 0 { return }
            HostClock.sleep(nanoseconds: min(delay, Self.longestDelay))
            now = HostClock.monotonicNanoseconds
        }
    }

    /// Nanoseconds. No request waits longer for the limits, so that a reset does not either.
    static let longestDelay: UInt64 = 1_000_000_000

    var isLimited: Bool { !options.limits.isUnlimited }
}
