internal import CHost
internal import X86

// MSRs that the processor itself keeps (SDM vol. 4); all others are the engine's (`hooks.read_msr`, `write_msr`).

enum MSR {
    static let tsc: UInt32 = 0x10
    static let tscAdjust: UInt32 = 0x3B
    static let speculationControl: UInt32 = 0x48
    static let predictionCommand: UInt32 = 0x49
    static let microcodeRevision: UInt32 = 0x8B
    static let mtrrCapability: UInt32 = 0xFE
    static let architectureCapabilities: UInt32 = 0x10A
    static let sysenterCS: UInt32 = 0x174
    static let sysenterESP: UInt32 = 0x175
    static let sysenterEIP: UInt32 = 0x176
    static let mcgCapability: UInt32 = 0x179
    static let mcgStatus: UInt32 = 0x17A
    static let miscEnable: UInt32 = 0x1A0
    static let debugControl: UInt32 = 0x1D9
    static let pat: UInt32 = 0x277
    static let mtrrDefault: UInt32 = 0x2FF
    static let efer: UInt32 = 0xC000_0080
    static let star: UInt32 = 0xC000_0081
    static let lstar: UInt32 = 0xC000_0082
    static let cstar: UInt32 = 0xC000_0083
    static let fmask: UInt32 = 0xC000_0084
    static let fsBase: UInt32 = 0xC000_0100
    static let gsBase: UInt32 = 0xC000_0101
    static let kernelGSBase: UInt32 = 0xC000_0102
    static let tscAux: UInt32 = 0xC000_0103
    /// The fixed-range MTRRs in the order of SDM vol. 3A table 12-9.
    static let mtrrFixed: [UInt32] = [
        0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C, 0x26D, 0x26E, 0x26F,
    ]
    /// Eight variable-range pairs.
    static let mtrrVariable: ClosedRange<UInt32> = 0x200...0x20F

    /// IA32_ARCH_CAPABILITIES: RDCL_NO IBRS_ALL SKIP_L1DFL_VMENTRY SSB_NO MDS_NO IF_PSCHANGE_MC_NO TAA_NO SBDR_SSDP_NO
    /// FBSDP_NO PSDP_NO BHI_NO PBRSB_NO GDS_NO RFDS_NO ITS_NO. The guest's mitigations would cost much and protect
    /// nothing: its kernel and its programs share the engine's address space (docs/quirks.md, Speculation).
    static let notAffected: UInt64 =
        1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 20 | 1 << 24
        | 1 << 26 | 1 << 27 | 1 << 62
    /// IBRS, STIBP, SSBD and BHI_DIS_S of IA32_SPEC_CTRL.
    static let speculationControls: UInt64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 10

    /// Those that a guest has only with a feature.
    static let ofFeatures: [(index: UInt32, leaf: UInt32, register: CPUIDRegister, bit: UInt32)] = [
        (tscAdjust, 7, .ebx, 1),
        (speculationControl, 7, .edx, 26),
        (predictionCommand, 7, .edx, 26),
        (architectureCapabilities, 7, .edx, 29),
    ]
}

extension Processor {
    /// Whether the guest's CPUID gives it a register; the engine itself has all of them (as KVM's user space).
    private func guestHasMSR(_ index: UInt32) -> Bool {
        guard let row = MSR.ofFeatures.first(where: { $0.index == index }) else { return true }
        return hasFeature(leaf: row.leaf, row.register, bit: row.bit)
    }

    /// RDMSR by the guest. Nil: #GP(0).
    func readGuestMSR(_ index: UInt32) -> UInt64? { guestHasMSR(index) ? readMSR(index) : nil }

    /// WRMSR by the guest. False: #GP(0).
    func writeGuestMSR(_ index: UInt32, _ value: UInt64) -> Bool { guestHasMSR(index) && writeMSR(index, value) }

    /// RDMSR. Nil: #GP(0).
    public func readMSR(_ index: UInt32) -> UInt64? {
        let s = state
        switch index {
        case MSR.tsc: return readTSC(s)
        case MSR.tscAdjust: return s.pointee.tsc_offset &- tscBase
        case MSR.speculationControl: return s.pointee.speculation_control
        case MSR.microcodeRevision: return 0x1_0000_0000
        case MSR.mtrrCapability: return 0x508
        case MSR.architectureCapabilities: return MSR.notAffected
        case MSR.sysenterCS: return s.pointee.sysenter_cs
        case MSR.sysenterESP: return s.pointee.sysenter_esp
        case MSR.sysenterEIP: return s.pointee.sysenter_eip
        case MSR.mcgCapability, MSR.mcgStatus: return 0
        case MSR.miscEnable: return s.pointee.misc_enable
        case MSR.debugControl: return s.pointee.debug_control
        case MSR.pat: return s.pointee.pat
        case MSR.mtrrDefault: return s.pointee.mtrr_default
        case MSR.mtrrVariable: return martlet_mtrr_variable(s)[Int(index - 0x200)]
        default: return readLongModeMSR(index)
        }
    }

    private func readLongModeMSR(_ index: UInt32) -> UInt64? {
        let s = state
        switch index {
        case MSR.efer: return s.pointee.efer
        case MSR.star: return s.pointee.star
        case MSR.lstar: return s.pointee.lstar
        case MSR.cstar: return s.pointee.cstar
        case MSR.fmask: return s.pointee.fmask
        case MSR.fsBase: return s.segment(SegmentRegister.fs).pointee.base
        case MSR.gsBase: return s.segment(SegmentRegister.gs).pointee.base
        case MSR.kernelGSBase: return s.pointee.kernel_gs_base
        case MSR.tscAux: return s.pointee.tsc_aux
        default:
            if let fixed = MSR.mtrrFixed.firstIndex(of: index) { return martlet_mtrr_fixed(s)[fixed] }
            var value: UInt64 = 0
            guard let hook = s.pointee.hooks.read_msr, hook(s.pointee.hooks.context, index, &value) == 0 else {
                return nil
            }
            return value
        }
    }

    /// WRMSR. False: #GP(0).
    public func writeMSR(_ index: UInt32, _ value: UInt64) -> Bool {
        let s = state
        switch index {
        case MSR.tsc: s.pointee.tsc_offset = value &- hostTSC(s)
        case MSR.tscAdjust: s.pointee.tsc_offset = tscBase &+ value
        case MSR.speculationControl:
            guard value & ~MSR.speculationControls == 0 else { return false }
            s.pointee.speculation_control = value
        case MSR.predictionCommand: return value & ~1 == 0
        case MSR.microcodeRevision: return true
        case MSR.mtrrCapability, MSR.architectureCapabilities, MSR.mcgCapability: return false
        case MSR.sysenterCS: s.pointee.sysenter_cs = value
        case MSR.sysenterESP:
            guard isCanonical(value) else { return false }
            s.pointee.sysenter_esp = value
        case MSR.sysenterEIP:
            guard isCanonical(value) else { return false }
            s.pointee.sysenter_eip = value
        case MSR.mcgStatus: return value == 0
        case MSR.miscEnable: s.pointee.misc_enable = value
        case MSR.debugControl: s.pointee.debug_control = value & 3
        case MSR.pat: return writePAT(value)
        case MSR.mtrrDefault: s.pointee.mtrr_default = value & 0xCFF
        case MSR.mtrrVariable: martlet_mtrr_variable(s)[Int(index - 0x200)] = value
        default: return writeLongModeMSR(index, value)
        }
        return true
    }

    private func writePAT(_ value: UInt64) -> Bool {
        for index in 0..<8 {
            let type = (value >> UInt64(index * 8)) & 0xFF
            if type > 7 || type == 2 || type == 3 { return false }
        }
        state.pointee.pat = value
        return true
    }

    private func writeLongModeMSR(_ index: UInt32, _ value: UInt64) -> Bool {
        let s = state
        switch index {
        case MSR.efer: return writeEFER(value)
        case MSR.star: s.pointee.star = value
        case MSR.lstar:
            guard isCanonical(value) else { return false }
            s.pointee.lstar = value
        case MSR.cstar:
            guard isCanonical(value) else { return false }
            s.pointee.cstar = value
        case MSR.fmask: s.pointee.fmask = value & 0xFFFF_FFFF
        case MSR.fsBase, MSR.gsBase:
            guard isCanonical(value) else { return false }
            let number = index == MSR.fsBase ? SegmentRegister.fs : SegmentRegister.gs
            s.segment(number).pointee.base = value
            s.segmentBases[number] = value
        case MSR.kernelGSBase:
            guard isCanonical(value) else { return false }
            s.pointee.kernel_gs_base = value
        case MSR.tscAux: s.pointee.tsc_aux = value & 0xFFFF_FFFF
        default:
            if let fixed = MSR.mtrrFixed.firstIndex(of: index) {
                martlet_mtrr_fixed(s)[fixed] = value
                return true
            }
            guard let hook = s.pointee.hooks.write_msr else { return false }
            return hook(s.pointee.hooks.context, index, value) == 0
        }
        return true
    }

    /// IA32_EFER (SDM vol. 3A §2.2.1): LME cannot change while paging is on; LMA follows CR0.PG alone.
    private func writeEFER(_ value: UInt64) -> Bool {
        let s = state
        let supported = Control.syscallEnable | Control.longModeEnable | Control.longModeActive | Control.noExecute
        if value & ~supported != 0 { return false }
        let changed = s.pointee.efer ^ value
        if changed & Control.longModeEnable != 0, s.pointee.cr0 & Control.paging != 0 { return false }
        s.pointee.efer = (value & ~Control.longModeActive) | (s.pointee.efer & Control.longModeActive)
        if changed & Control.noExecute != 0 { flushTranslations(s, keepGlobal: false) }
        return true
    }
}
