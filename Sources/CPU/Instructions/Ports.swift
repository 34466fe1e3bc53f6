internal import CHost

// IN and OUT (SDM vol. 1 ch. 19). What no hook of the engine takes leaves for user space; the instruction is restarted
// with the answer.

/// I/O permission: IOPL, else the bitmap in the TSS (SDM vol. 1 §19.5.2). False: #GP recorded.
func mayAccessPort(_ s: State, _ port: UInt16, _ size: UInt8) -> Bool {
    guard s.isProtected, s.pointee.cpl > s.ioPrivilegeLevel || s.isVirtual8086 else { return true }
    let task = s.pointee.tr
    let isTSS32 = task.attributes & 0xD == 0x9 && task.attributes & SegmentAttribute.present != 0
    guard isTSS32, task.limit >= 103, let base = systemRead(s, task.base &+ 102, 2) else {
        if s.pointee.stop != UInt32(MARTLET_STOP_EXCEPTION) || !isTSS32 || task.limit < 103 {
            raise(s, .generalProtection, error: 0)
        }
        return false
    }
    let byte = base &+ UInt64(port >> 3)
    guard byte &+ 1 <= UInt64(task.limit), let bits = systemRead(s, task.base &+ byte, 2) else {
        if byte &+ 1 > UInt64(task.limit) { raise(s, .generalProtection, error: 0) }
        return false
    }
    let mask = ((UInt64(1) << UInt64(size)) &- 1) << UInt64(port & 7)
    if bits & mask != 0 {
        raise(s, .generalProtection, error: 0)
        return false
    }
    return true
}

/// Reads a port; `batch` is how many such reads an exit may ask for at once (REP INS). Nil: user space must answer first.
func readPort(_ s: State, _ port: UInt16, _ size: UInt8, batch: Int = 1) -> UInt32? {
    notePortAccess(s, port, size)
    if s.pointee.port_answered != 0 {
        let taken = Int(s.pointee.port_count &- s.pointee.port_answered)
        s.pointee.port_answered &-= 1
        return martlet_port_data(s)[min(taken, Int(MARTLET_PORT_BATCH) - 1)]
    }
    var value: UInt32 = 0
    if let hook = s.pointee.hooks.port, hook(s.pointee.hooks.context, port, UInt32(size), 0, &value) == 0 {
        return value
    }
    askPort(s, port, size, 0, isWrite: false, count: batch)
    return nil
}

/// Writes a port. False: user space must take it first.
func writePort(_ s: State, _ port: UInt16, _ size: UInt8, _ data: UInt32) -> Bool {
    notePortAccess(s, port, size)
    if s.pointee.port_answered != 0 {
        s.pointee.port_answered = 0
        return true
    }
    let mask: UInt32 = size == 4 ? .max : (1 << UInt32(size &* 8)) &- 1
    var value = data & mask
    if let hook = s.pointee.hooks.port, hook(s.pointee.hooks.context, port, UInt32(size), 1, &value) == 0 {
        return true
    }
    askPort(s, port, size, value, isWrite: true, count: 1)
    return false
}

private func askPort(_ s: State, _ port: UInt16, _ size: UInt8, _ data: UInt32, isWrite: Bool, count: Int) {
    s.pointee.port_number = port
    s.pointee.port_size = size
    s.pointee.port_is_write = isWrite ? 1 : 0
    s.pointee.port_count = UInt16(max(1, min(count, Int(MARTLET_PORT_BATCH))))
    martlet_port_data(s)[0] = data
    s.pointee.stop = UInt32(MARTLET_STOP_PORT)
}

let inHandler: Handler = { s, i in
    let isImmediate = i.pointee.mnemonic == Mnemonic.inImmediate.rawValue
    let port = isImmediate ? UInt16(i.pointee.immediate & 0xFF) : UInt16(truncatingIfNeeded: s.register(2))
    let size = i.pointee.size == 8 ? 4 : i.pointee.size
    guard mayAccessPort(s, port, size), let value = readPort(s, port, size) else { return stop(s, i) }
    writeRegister(s, 0, UInt64(value), size: size)
    return goOn(s, i)
}

let outHandler: Handler = { s, i in
    let isImmediate = i.pointee.mnemonic == Mnemonic.outImmediate.rawValue
    let port = isImmediate ? UInt16(i.pointee.immediate & 0xFF) : UInt16(truncatingIfNeeded: s.register(2))
    let size = i.pointee.size == 8 ? 4 : i.pointee.size
    guard mayAccessPort(s, port, size),
        writePort(s, port, size, UInt32(truncatingIfNeeded: s.register(0)))
    else { return stop(s, i) }
    return goOn(s, i)
}
