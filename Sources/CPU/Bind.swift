internal import CHost

/// Picks the handler of a decoded instruction. False: no room for a vector stub.
func bind(_ i: Insn, stubs: StubCache) -> Bool {
    let mnemonic = Mnemonic(rawValue: i.pointee.mnemonic) ?? .invalid
    if mnemonic == .vector { return bindVector(i, stubs: stubs) }
    let handler = handler(for: mnemonic, i) ?? invalidOpcodeHandler
    i.pointee.handler = unsafeBitCast(handler, to: UnsafeMutableRawPointer.self)
    return true
}

/// Two-operand shapes: `reg, rm` with a register rm is `rm, reg` with the fields exchanged.
private func shape(_ i: Insn) -> OperandShape {
    let isMemory = i.pointee.flags & InsnFlag.memory != 0
    switch Form(rawValue: i.pointee.operation) ?? .none {
    case .eg: return isMemory ? .memoryRegister : .registerRegister
    case .ge:
        if isMemory { return .registerMemory }
        let reg = i.pointee.reg
        i.pointee.reg = i.pointee.rm
        i.pointee.rm = reg
        return .registerRegister
    default: return isMemory ? .memoryImmediate : .registerImmediate
    }
}

private func handler(for mnemonic: Mnemonic, _ i: Insn) -> Handler? {
    let size = i.pointee.size
    let isMemory = i.pointee.flags & InsnFlag.memory != 0
    let isLocked = i.pointee.flags & InsnFlag.lock != 0
    switch mnemonic {
    case .add, .or, .adc, .sbb, .and, .sub, .xor, .cmp, .test:
        return isLocked ? lockedArithmeticHandler : arithmeticHandler(mnemonic, shape(i), size)
    case .inc, .dec, .neg, .not: return isLocked ? lockedArithmeticHandler : unaryHandler(size)
    case .mov, .movImmediate: return moveHandler(shape(i), size)
    case .movzxByte, .movzxWord, .movsxByte, .movsxWord, .movsxd:
        return extensionHandler(mnemonic, isMemory: isMemory, size)
    case .lea: return size == 8 && i.pointee.flags & InsnFlag.complexAddress == 0 ? lea64Handler : leaHandler
    case .rol, .ror, .rcl, .rcr, .shl, .shr, .sal, .sar: return shiftHandler(size)
    case .shld, .shrd: return doubleShiftHandler
    case .bsf, .bsr, .tzcnt, .lzcnt, .popcnt, .imul2, .imul3: return scanHandler
    case .adcx, .adox: return carryHandler
    case .bt, .bts, .btr, .btc: return bitTestHandler
    case .mul, .imul1: return multiplyHandler
    case .div, .idiv: return divideHandler
    case .cmpxchg: return cmpxchgHandler
    case .cmpxchg8b: return cmpxchg8bHandler
    case .xadd: return xaddHandler
    case .crc32: return crc32Handler
    case .movbe: return movbeHandler
    case .bswap: return bswapHandler
    case .daa, .das, .aaa, .aas, .aam, .aad: return decimalHandler
    case .cbw: return cbwHandler
    case .cwd: return cwdHandler
    case .movnti: return movntiHandler
    case .xchg: return xchgHandler
    case .xlat: return xlatHandler
    case .cmov: return cmovHandler
    case .set: return setHandler
    case .lahf: return lahfHandler
    case .sahf: return sahfHandler
    default: return transferHandler(for: mnemonic, i)
    }
}

private func transferHandler(for mnemonic: Mnemonic, _ i: Insn) -> Handler? {
    let size = i.pointee.size
    let isMemory = i.pointee.flags & InsnFlag.memory != 0
    switch mnemonic {
    case .push: return size == 8 && !isMemory ? pushRegister64Handler : pushHandler
    case .pop: return size == 8 && !isMemory ? popRegister64Handler : popHandler
    case .pushImmediate: return size == 8 ? pushImmediate64Handler : pushImmediateHandler
    case .pusha: return pushaHandler
    case .popa: return popaHandler
    case .pushf: return pushfHandler
    case .popf: return popfHandler
    case .enter: return enterHandler
    case .leave: return leaveHandler
    case .pushSegment: return pushSegmentHandler
    case .popSegment: return popSegmentHandler
    case .movOffsetLoad: return movOffsetLoadHandler
    case .movOffsetStore: return movOffsetStoreHandler
    case .movs, .cmps, .stos, .lods, .scas: return stringHandler(for: mnemonic, i)
    case .ins, .outs: return portStringHandler
    case .jcc: return conditionalJumpHandler(i.pointee.opcode & 15)
    case .jmp: return jumpHandler
    case .call: return size == 8 ? call64Handler : callHandler
    case .jmpIndirect: return jumpIndirectHandler
    case .callIndirect: return callIndirectHandler
    case .ret: return size == 8 ? ret64Handler : retHandler
    case .retImmediate: return retHandler
    case .jmpFar, .jmpFarIndirect: return jumpFarHandler
    case .callFar, .callFarIndirect: return callFarHandler
    case .retFar, .retFarImmediate: return retFarHandler
    case .iret: return iretHandler
    case .loop, .loope, .loopne: return loopHandler
    case .jcxz: return jcxzHandler
    case .int3, .int, .into, .int1: return interruptHandler
    case .bound: return boundHandler
    case .syscall: return syscallHandler
    case .sysret: return sysretHandler
    case .sysenter: return sysenterHandler
    case .sysexit: return sysexitHandler
    default: return systemHandler(for: mnemonic)
    }
}

private func stringHandler(for mnemonic: Mnemonic, _ i: Insn) -> Handler {
    // Addresses of 64 bits are those of 64-bit mode.
    guard i.pointee.address_size == 8, i.pointee.flags & (InsnFlag.rep | InsnFlag.repne) != 0 else {
        return stringHandler
    }
    switch mnemonic {
    case .movs: return repMovs64Handler
    case .stos: return repStos64Handler
    default: return stringHandler
    }
}

private func systemHandler(for mnemonic: Mnemonic) -> Handler? {
    switch mnemonic {
    case .clc, .stc, .cmc, .cld, .std: simpleFlagHandler
    case .cli: cliHandler
    case .sti: stiHandler
    case .clac, .stac: smapHandler
    case .hlt: hltHandler
    case .inImmediate, .inDX: inHandler
    case .outImmediate, .outDX: outHandler
    case .wait: waitInstructionHandler
    case .lgdt, .lidt, .sgdt, .sidt: descriptorTableHandler
    case .lldt, .ltr: loadSystemSelectorHandler
    case .sldt, .str: storeSystemSelectorHandler
    case .smsw, .lmsw: machineStatusHandler
    case .clts: clearTaskSwitchedHandler
    case .invlpg: invlpgHandler
    case .invpcid: invpcidHandler
    case .swapgs: swapgsHandler
    case .rdtsc, .rdtscp: rdtscHandler
    case .movFromCR: movFromCRHandler
    case .movToCR: movToCRHandler
    case .movFromDR: movFromDRHandler
    case .movToDR: movToDRHandler
    case .wrmsr: wrmsrHandler
    case .rdmsr: rdmsrHandler
    case .rdpmc: rdpmcHandler
    case .cpuid: cpuidHandler
    case .invd, .wbinvd: cacheControlHandler
    case .lar, .lsl, .verr, .verw: inspectSelectorHandler
    case .arpl: arplHandler
    case .movFromSegment: movFromSegmentHandler
    case .movToSegment: movToSegmentHandler
    case .les, .lds, .lss, .lfs, .lgs: loadFarPointerHandler
    case .rdfsbase, .rdgsbase, .wrfsbase, .wrgsbase: segmentBaseHandler
    case .nop, .pause: nopHandler
    case .lfence, .mfence, .sfence: fenceHandler
    case .clflush: clflushHandler
    case .xgetbv: xgetbvHandler
    case .xsetbv: xsetbvHandler
    case .xsave, .xsaveopt: xsaveHandler
    case .xsavec: xsavecHandler
    case .xrstor: xrstorHandler
    case .rdrand where HostProcessor.hasRDRAND, .rdseed where HostProcessor.hasRDSEED: randomHandler
    case .rdpid: rdpidHandler
    // MONITOR and the rest need their feature bits: not there, #UD.
    default: nil
    }
}

let waitInstructionHandler: Handler = { s, i in waitHandler(s, i) }
