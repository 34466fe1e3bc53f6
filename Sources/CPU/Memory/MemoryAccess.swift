internal import CHost

// Every access to guest memory. The fast path is one TLB compare, which catches page-crossing accesses too:
// (address - tag) is below the page size only on the page itself. All else (TLB miss, crossing, MMIO, pages with decoded
// code, faults) is in `slowPointer`, which may answer with the bounce buffer.

let pageSize: UInt64 = 4096
let pageMask: UInt64 = 4095

/// What an access is about to do.
struct AccessKind {
    static let read: UInt8 = 1
    static let write: UInt8 = 2
    static let readWrite: UInt8 = 3
}

/// The linear address of the memory operand of `i` without limit checks, for operands whose pieces check themselves.
@inline(__always) func effectiveAddress(_ s: State, _ i: Insn) -> UInt64 {
    if i.pointee.flags & InsnFlag.complexAddress == 0 { return simpleAddress(s, i) }
    return complexOffset(s, i) &+ s.segmentBases[Int(i.pointee.segment)]
}

@inline(__always) func simpleAddress(_ s: State, _ i: Insn) -> UInt64 {
    let base = s.registerFile.load(fromByteOffset: Int(i.pointee.base), as: UInt64.self)
    let index = s.registerFile.load(fromByteOffset: Int(i.pointee.index), as: UInt64.self)
    return base &+ (index &<< UInt64(i.pointee.scale)) &+ UInt64(bitPattern: Int64(i.pointee.displacement))
}

/// The offset inside the segment, cut to the address size (what LEA computes).
@inline(never) func complexOffset(_ s: State, _ i: Insn) -> UInt64 {
    var offset = simpleAddress(s, i)
    if i.pointee.operation == Form.offset.rawValue { offset = i.pointee.immediate }
    if i.pointee.base == UInt8(MARTLET_PAGE_RIP_REGISTER * 8), i.pointee.flags & InsnFlag.complexAddress != 0 {
        offset = offset &+ UInt64(i.pointee.page_offset) &+ UInt64(i.pointee.length)
    }
    return maskAddress(offset, i.pointee.address_size)
}

@inline(__always) func maskAddress(_ offset: UInt64, _ addressSize: UInt8) -> UInt64 {
    switch addressSize {
    case 8: offset
    case 4: offset & 0xFFFF_FFFF
    default: offset & 0xFFFF
    }
}

/// The linear address of `size` bytes at `offset` of a segment, checked against its limit and type
/// (SDM vol. 3A §5.3, §5.4). Nil: fault recorded.
@inline(never) func segmentedAddress(
    _ s: State, segment: Int, offset: UInt64, size: Int, kind: UInt8
) -> UInt64? {
    if s.pointee.mode == CodeMode.bits64 { return s.segmentBases[segment] &+ offset }
    let register = s.segment(segment).pointee
    let attributes = register.attributes
    let isStack = segment == SegmentRegister.ss
    func fail() -> UInt64? {
        raise(s, isStack ? .stack : .generalProtection, error: 0)
        return nil
    }
    if s.isProtected, !s.isVirtual8086 {
        if attributes & SegmentAttribute.unusable != 0 { return fail() }
        let isCode = attributes & SegmentAttribute.code != 0
        let allows = attributes & SegmentAttribute.writableOrReadable != 0
        if kind & AccessKind.write != 0, isCode || !allows { return fail() }
        if kind & AccessKind.read != 0, isCode, !allows { return fail() }
    }
    let last = offset &+ UInt64(size) &- 1
    let expandsDown =
        attributes & (SegmentAttribute.code | SegmentAttribute.expandDownOrConforming)
        == SegmentAttribute.expandDownOrConforming
    if expandsDown, s.isProtected, !s.isVirtual8086 {
        let top: UInt64 = attributes & SegmentAttribute.big != 0 ? 0xFFFF_FFFF : 0xFFFF
        if offset <= UInt64(register.limit) || last > top { return fail() }
    } else if last > UInt64(register.limit) || last < offset {
        return fail()
    }
    return (register.base &+ offset) & 0xFFFF_FFFF
}

/// The linear address of the memory operand, segment rules checked. Nil: fault recorded.
@inline(__always) func operandAddress(_ s: State, _ i: Insn, _ size: Int, _ kind: UInt8) -> UInt64? {
    if i.pointee.flags & InsnFlag.complexAddress == 0 { return simpleAddress(s, i) }
    return segmentedAddress(
        s, segment: Int(i.pointee.segment), offset: complexOffset(s, i), size: size, kind: kind)
}

@inline(__always) func tlbLine(_ s: State, _ address: UInt64) -> TLBLine {
    TLBLine(s.pointee.tlb.unsafelyUnwrapped, tlbIndex(address))
}

@inline(__always) func hostPointer(_ line: TLBLine, _ address: UInt64) -> UnsafeMutableRawPointer {
    UnsafeMutableRawPointer(bitPattern: UInt(line.addend &+ address)).unsafelyUnwrapped
}

/// A pointer to read `size` bytes of guest memory at `address` from. Nil: fault or exit recorded.
@inline(__always) func readPointer(_ s: State, _ address: UInt64, _ size: Int) -> UnsafeMutableRawPointer? {
    let line = tlbLine(s, address)
    if address &- line.readTag <= pageSize &- UInt64(size) {
        return hostPointer(line, address)
    }
    return slowPointer(s, address, size, AccessKind.read)
}

/// A pointer to write `size` bytes to; `commit` must follow the store. Nil: fault or exit recorded.
@inline(__always) func writePointer(_ s: State, _ address: UInt64, _ size: Int) -> UnsafeMutableRawPointer? {
    let line = tlbLine(s, address)
    if address &- line.writeTag <= pageSize &- UInt64(size) {
        return hostPointer(line, address)
    }
    return slowPointer(s, address, size, AccessKind.write)
}

/// A pointer to read and then write `size` bytes; `commit` must follow the store. Nil: fault or exit recorded.
@inline(__always) func readWritePointer(_ s: State, _ address: UInt64, _ size: Int) -> UnsafeMutableRawPointer? {
    let line = tlbLine(s, address)
    if address &- line.writeTag <= pageSize &- UInt64(size) {
        return hostPointer(line, address)
    }
    return slowPointer(s, address, size, AccessKind.readWrite)
}

@inline(__always) func readOperand(_ s: State, _ i: Insn, _ size: Int) -> UnsafeMutableRawPointer? {
    guard let address = operandAddress(s, i, size, AccessKind.read) else { return nil }
    return readPointer(s, address, size)
}

@inline(__always) func writeOperand(_ s: State, _ i: Insn, _ size: Int) -> UnsafeMutableRawPointer? {
    guard let address = operandAddress(s, i, size, AccessKind.write) else { return nil }
    return writePointer(s, address, size)
}

@inline(__always) func readWriteOperand(_ s: State, _ i: Insn, _ size: Int) -> UnsafeMutableRawPointer? {
    guard let address = operandAddress(s, i, size, AccessKind.readWrite) else { return nil }
    return readWritePointer(s, address, size)
}

/// Completes a store to a pointer of `writePointer` or `readWritePointer`. False: fault or exit recorded.
@inline(__always) func commit(_ s: State, _ pointer: UnsafeMutableRawPointer, _ size: Int) -> Bool {
    if pointer != s.bounceBuffer { return true }
    return commitBounce(s)
}

/// Reads one operand of type `T` at a linear address. Nil: fault or exit recorded.
@inline(__always) func load<T: FixedWidthInteger & BitwiseCopyable>(_ s: State, _ address: UInt64, _ type: T.Type) -> T?
{
    readPointer(s, address, MemoryLayout<T>.size)?.loadUnaligned(as: T.self)
}

@inline(__always) func store<T: FixedWidthInteger & BitwiseCopyable>(_ s: State, _ address: UInt64, _ value: T) -> Bool
{
    guard let pointer = writePointer(s, address, MemoryLayout<T>.size) else { return false }
    pointer.storeBytes(of: value, as: T.self)
    return commit(s, pointer, MemoryLayout<T>.size)
}

/// Whether a linear address is one that paging can take (SDM vol. 1 §3.3.7.1).
@inline(__always) func isCanonical(_ address: UInt64) -> Bool {
    UInt64(bitPattern: (Int64(bitPattern: address) << 16) >> 16) == address
}

/// Everything that the TLB compare does not settle.
@inline(never) func slowPointer(_ s: State, _ address: UInt64, _ size: Int, _ kind: UInt8) -> UnsafeMutableRawPointer? {
    if s.pointee.mode == CodeMode.bits64 {
        if !isCanonical(address) || !isCanonical(address &+ UInt64(size - 1)) {
            raise(s, .generalProtection, error: 0)
            return nil
        }
    }
    noteDataAccess(s, address, size, kind)
    if (address & pageMask) &+ UInt64(size) <= pageSize {
        return singlePagePointer(s, address, size, kind)
    }
    return crossingPointer(s, address, size, kind)
}

/// What translation came to for one page.
struct PageTarget {
    var guestPhysical: UInt64
    /// Host address of the byte, nil for MMIO.
    var host: UnsafeMutableRawPointer?
}

private func singlePagePointer(_ s: State, _ address: UInt64, _ size: Int, _ kind: UInt8) -> UnsafeMutableRawPointer? {
    guard let target = resolveData(s, address, kind) else { return nil }
    if let host = target.host {
        if kind & AccessKind.write != 0 { noteCodeWrite(s, target.guestPhysical, size) }
        return host
    }
    let bounce = s.bounceBuffer
    s.pointee.bounce_address = address
    s.pointee.bounce_size = UInt32(size)
    if kind & AccessKind.read != 0, !mmioRead(s, target.guestPhysical, size, into: bounce) { return nil }
    return bounce
}

/// An access over a page boundary, through the bounce buffer; both pages are checked before anything happens.
private func crossingPointer(_ s: State, _ address: UInt64, _ size: Int, _ kind: UInt8) -> UnsafeMutableRawPointer? {
    let firstSize = Int(pageSize - (address & pageMask))
    let wrapped = linearSum(s, address, UInt64(firstSize))
    guard let first = resolveData(s, address, kind), let second = resolveData(s, wrapped, kind) else { return nil }
    let bounce = s.bounceBuffer
    s.pointee.bounce_address = address
    s.pointee.bounce_size = UInt32(size)
    if kind & AccessKind.read != 0 {
        guard copyIn(s, first, firstSize, to: bounce),
            copyIn(s, second, size - firstSize, to: bounce + firstSize)
        else { return nil }
    }
    return bounce
}

/// Linear addresses wrap at 4 GiB outside 64-bit mode.
@inline(__always) func linearSum(_ s: State, _ address: UInt64, _ offset: UInt64) -> UInt64 {
    s.pointee.mode == CodeMode.bits64 ? address &+ offset : (address &+ offset) & 0xFFFF_FFFF
}

private func copyIn(_ s: State, _ target: PageTarget, _ size: Int, to destination: UnsafeMutableRawPointer) -> Bool {
    guard let host = target.host else { return mmioRead(s, target.guestPhysical, size, into: destination) }
    destination.copyMemory(from: host, byteCount: size)
    return true
}

/// Writes the bounce buffer to where it stands for.
@inline(never) func commitBounce(_ s: State) -> Bool {
    let address = s.pointee.bounce_address
    let size = Int(s.pointee.bounce_size)
    let firstSize = min(size, Int(pageSize - (address & pageMask)))
    guard let first = resolveData(s, address, AccessKind.write) else { return false }
    var second: PageTarget?
    if firstSize < size {
        second = resolveData(s, linearSum(s, address, UInt64(firstSize)), AccessKind.write)
        if second == nil { return false }
    }
    // MMIO first: it may leave for user space, and the instruction is then restarted as a whole.
    let bounce = s.bounceBuffer
    if first.host == nil, !mmioWrite(s, first.guestPhysical, firstSize, from: bounce) { return false }
    if let second, second.host == nil,
        !mmioWrite(s, second.guestPhysical, size - firstSize, from: bounce + firstSize)
    {
        return false
    }
    copyOut(s, first, firstSize, from: bounce)
    if let second { copyOut(s, second, size - firstSize, from: bounce + firstSize) }
    return true
}

private func copyOut(_ s: State, _ target: PageTarget, _ size: Int, from source: UnsafeMutableRawPointer) {
    guard let host = target.host else { return }
    noteCodeWrite(s, target.guestPhysical, size)
    host.copyMemory(from: source, byteCount: size)
}

/// Copies `count` bytes of any length from guest memory, nothing copied on a fault. False: fault or exit recorded.
func readBytes(_ s: State, _ i: Insn, _ address: UInt64, _ count: Int, into destination: UnsafeMutableRawPointer)
    -> Bool
{
    var offset = 0
    while offset < count {
        let place = linearSum(s, address, UInt64(offset))
        var piece = min(count - offset, Int(pageSize - (place & pageMask)))
        let line = tlbLine(s, place)
        if place &- line.readTag <= pageSize &- UInt64(piece) {
            (destination + offset).copyMemory(from: hostPointer(line, place), byteCount: piece)
        } else {
            piece = min(count - offset, 8)
            guard let source = readPointer(s, place, piece) else { return false }
            (destination + offset).copyMemory(from: source, byteCount: piece)
        }
        offset += piece
    }
    return true
}

/// Copies `count` bytes to guest memory; pages are checked before the first byte changes. False: fault or exit recorded.
func writeBytes(_ s: State, _ i: Insn, _ address: UInt64, _ count: Int, from source: UnsafeRawPointer) -> Bool {
    guard resolveData(s, address, AccessKind.write) != nil,
        resolveData(s, linearSum(s, address, UInt64(count - 1)), AccessKind.write) != nil
    else { return false }
    var offset = 0
    while offset < count {
        let place = linearSum(s, address, UInt64(offset))
        var piece = min(count - offset, Int(pageSize - (place & pageMask)))
        let line = tlbLine(s, place)
        if place &- line.writeTag <= pageSize &- UInt64(piece) {
            hostPointer(line, place).copyMemory(from: source + offset, byteCount: piece)
        } else {
            piece = min(count - offset, 8)
            guard let target = writePointer(s, place, piece) else { return false }
            target.copyMemory(from: source + offset, byteCount: piece)
            guard commit(s, target, piece) else { return false }
        }
        offset += piece
    }
    return true
}
