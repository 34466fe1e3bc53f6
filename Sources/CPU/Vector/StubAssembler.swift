internal import CHost

/// Offsets of fields in the FXSAVE image (SDM vol. 1 table 10-2).
enum FXImage {
    static let controlWord = 0
    static let statusWord = 2
    static let tags = 4
    static let opcode = 6
    static let instructionPointer = 8
    static let dataPointer = 16
    static let mxcsr = 24
    static let mxcsrMask = 28
    static let x87Registers = 32
    static let xmmRegisters = 160
    static let size = 512

    /// Bits of the x87 status word: an unmasked exception waits, TOP, busy.
    static let exceptionSummary: UInt16 = 0x80
    static let busy: UInt16 = 0x8000
    static let top: UInt16 = 0x3800
    /// MXCSR bits that exist (SDM vol. 1 §10.2.3), its exception masks and its sticky flags.
    static let mxcsrBits: UInt32 = 0xFFFF
    static let mxcsrMasks: UInt32 = 0x1F80
    static let mxcsrFlags: UInt32 = 0x3F
    static let mxcsrDefault: UInt32 = 0x1F80
}

/// The vector registers and, behind them, the opmasks (cpu_state.h).
enum VectorFile {
    static let stride = Int(MARTLET_ZMM_SIZE)
    static let count = Int(MARTLET_ZMM_COUNT)
    /// Bytes of both.
    static let size = count * stride + 8 * 8
}

/// Emits the little x86-64 that stubs consist of. Registers by the calling convention: RDI the vCPU, RSI the instruction,
/// RDX the memory operand; RAX, RCX, R8 and R9 are scratch.
struct StubAssembler {
    /// A general register that stubs move to and from the guest's.
    enum Scratch: UInt8 { case rax = 0, rcx = 1, rdx = 2, r9 = 9 }

    private(set) var bytes: [UInt8] = []
    /// Where callers enter, from the start of the stub.
    private(set) var entry = 0
    private let origin: Int

    init(origin: Int) { self.origin = origin }

    var position: Int { bytes.count }

    mutating func emit(_ code: UInt8...) { bytes += code }
    mutating func emit(contentsOf code: [UInt8]) { bytes += code }
    mutating func emit32(_ value: Int32) {
        for shift in stride(from: 0, to: 32, by: 8) { bytes.append(UInt8(truncatingIfNeeded: value >> Int32(shift))) }
    }

    /// Reserves a word in front of the entry, for `setLead`.
    mutating func reserveLead() {
        emit32(0)
        entry = bytes.count
    }

    /// Stores the distance from the entry to here in the word in front of the entry.
    mutating func setLead() {
        let distance = UInt32(truncatingIfNeeded: bytes.count - entry)
        for index in 0..<4 { bytes[entry - 4 + index] = UInt8(truncatingIfNeeded: distance >> UInt32(index * 8)) }
    }

    private mutating func jump(_ condition: UInt8, to exit: StubCache.Exit) {
        emit(0x0F, 0x80 | condition)
        emit32(Int32(truncatingIfNeeded: exit.rawValue * 16 - (origin + bytes.count + 4)))
    }

    private var fx: Int32 { martlet_offset_fx }

    /// Leaves when CR0.EM or CR0.TS is set.
    mutating func requireX87(_ exit: StubCache.Exit) {
        emit(0xF6, 0x87)  // test byte [rdi + cr0], 0Ch
        emit32(martlet_offset_cr0)
        emit(UInt8(Control.emulation | Control.taskSwitched))
        jump(5, to: exit)
    }

    /// Leaves when CR4.OSFXSR is clear.
    mutating func requireSSE(_ exit: StubCache.Exit) {
        emit(0xF6, 0x87)  // test byte [rdi + cr4 + 1], 02h
        emit32(martlet_offset_cr4 + 1)
        emit(UInt8(Control.fxsaveSupport >> 8))
        jump(4, to: exit)
    }

    /// Leaves when an unmasked x87 exception waits, or TOP is not 0: only then is MMn at ST(n)'s place in the image.
    mutating func requireMMXOrder(_ exit: StubCache.Exit) {
        let bits = FXImage.exceptionSummary | FXImage.top
        emit(0x66, 0xF7, 0x87)  // test word [rdi + fsw], 3880h
        emit32(fx + Int32(FXImage.statusWord))
        emit(UInt8(truncatingIfNeeded: bits), UInt8(truncatingIfNeeded: bits >> 8))
        jump(5, to: exit)
    }

    /// Leaves when MXCSR's control bits differ from those that the host's own code runs with. Uses EAX.
    mutating func requireDefaultMXCSR() {
        emit(0x8B, 0x87)  // mov eax, [rdi + mxcsr]
        emit32(fx + Int32(FXImage.mxcsr))
        emit(0x25)  // and eax, 0FFC0h
        emit32(Int32(FXImage.mxcsrBits & ~FXImage.mxcsrFlags))
        emit(0x3D)  // cmp eax, 1F80h
        emit32(Int32(FXImage.mxcsrDefault))
        jump(5, to: .controlled)
    }

    /// Leaves when the register files of `unit` (MARTLET_UNIT_) cannot be used.
    mutating func requireUnit(_ unit: UInt8) {
        emit(0xF6, 0x87)  // test byte [rdi + units], unit
        emit32(martlet_offset_units)
        emit(unit)
        jump(4, to: .wideUnavailable)
    }

    /// All tags valid (SDM vol. 1 §9.5.1); TOP is 0 already.
    mutating func validateTags() {
        emit(0xC6, 0x87)  // mov byte [rdi + tags], 0FFh
        emit32(fx + Int32(FXImage.tags))
        emit(0xFF)
    }

    /// The host's x87 registers back to empty, as the calling convention wants them.
    mutating func emptyMMX() { emit(0x0F, 0x77) }

    mutating func loadXMM(_ number: UInt8) { moveXMM(0x10, number) }
    mutating func storeXMM(_ number: UInt8) { moveXMM(0x11, number) }

    private mutating func moveXMM(_ opcode: UInt8, _ number: UInt8) {
        if number >= 8 { emit(0x44) }
        emit(0x0F, opcode, 0x87 | ((number & 7) << 3))
        emit32(martlet_offset_zmm + Int32(number) * Int32(VectorFile.stride))
    }

    /// Moves `size` bytes (16, 32 or 64) between a vector register and its place in the state. A load clears what lies
    /// above them in the host's register.
    mutating func loadVector(_ number: UInt8, size: Int) { moveVector(0x10, number, size) }
    mutating func storeVector(_ number: UInt8, size: Int) { moveVector(0x11, number, size) }

    /// VMOVUPS, as VEX where that can do it.
    private mutating func moveVector(_ opcode: UInt8, _ number: UInt8, _ size: Int) {
        let inverted = ~number
        if number < 16, size < 64 {
            emit(0xC5, (inverted & 8) << 4 | 0x78 | (size == 32 ? 4 : 0))
        } else {
            let length: UInt8 = size == 64 ? 0x40 : (size == 32 ? 0x20 : 0)
            emit(0x62, (inverted & 8) << 4 | 0x60 | (inverted & 16) | 1, 0x7C, length | 8)
        }
        // A displacement of 32 bits is not scaled.
        emit(opcode, 0x87 | ((number & 7) << 3))
        emit32(martlet_offset_zmm + Int32(number) * Int32(VectorFile.stride))
    }

    mutating func loadMask(_ number: UInt8) { moveMask(0x90, number) }
    mutating func storeMask(_ number: UInt8) { moveMask(0x91, number) }

    private mutating func moveMask(_ opcode: UInt8, _ number: UInt8) {
        emit(0xC4, 0xE1, 0xF8, opcode, 0x87 | (number << 3))  // kmovq
        emit32(martlet_offset_opmask + Int32(number) * 8)
    }

    /// The host's own code is SSE; some processors are slow at it while upper halves are in use.
    mutating func clearUpperHalves() { emit(0xC5, 0xF8, 0x77) }

    mutating func loadMM(_ number: UInt8) {
        emit(0x0F, 0x6F, 0x87 | (number << 3))
        emit32(fx + Int32(FXImage.x87Registers) + Int32(number) * 16)
    }

    /// Stores MMn; the bits above it become ones (SDM vol. 1 §9.5.2).
    mutating func storeMM(_ number: UInt8) {
        let offset = fx + Int32(FXImage.x87Registers) + Int32(number) * 16
        emit(0x0F, 0x7F, 0x87 | (number << 3))
        emit32(offset)
        emit(0x66, 0xC7, 0x87)  // mov word [rdi + offset + 8], 0FFFFh
        emit32(offset + 8)
        emit(0xFF, 0xFF)
    }

    mutating func loadGeneral(_ scratch: Scratch, from number: UInt8) {
        emit(0x48 | (scratch.rawValue & 8) >> 1, 0x8B, 0x87 | ((scratch.rawValue & 7) << 3))
        emit32(Int32(number) * 8)
    }

    mutating func storeGeneral(_ scratch: Scratch, to number: UInt8) {
        emit(0x48 | (scratch.rawValue & 8) >> 1, 0x89, 0x87 | ((scratch.rawValue & 7) << 3))
        emit32(Int32(number) * 8)
    }

    mutating func loadMXCSR() {
        emit(0x0F, 0xAE, 0x97)  // ldmxcsr [rdi + mxcsr]
        emit32(fx + Int32(FXImage.mxcsr))
    }

    mutating func storeMXCSR() {
        emit(0x0F, 0xAE, 0x9F)  // stmxcsr [rdi + mxcsr]
        emit32(fx + Int32(FXImage.mxcsr))
    }

    mutating func saveHostMXCSR() { emit(0x0F, 0xAE, 0x5C, 0x24, 0xF8) }  // stmxcsr [rsp - 8]
    mutating func restoreHostMXCSR() { emit(0x0F, 0xAE, 0x54, 0x24, 0xF8) }  // ldmxcsr [rsp - 8]
    mutating func loadMXCSRArgument() { emit(0x0F, 0xAE, 0x11) }  // ldmxcsr [rcx]
    mutating func storeMXCSRArgument() { emit(0x0F, 0xAE, 0x19) }  // stmxcsr [rcx]

    /// The six status flags into the status word (cpu_state.h). Changes EAX.
    mutating func captureStatus() {
        emit(0x9F, 0x0F, 0x90, 0xC0)  // lahf; seto al
        emit(0x66, 0x89, 0x87)  // mov [rdi + status], ax
        emit32(martlet_offset_status)
    }

    /// The status word into the six status flags. Changes EAX.
    mutating func restoreStatus() {
        emit(0x0F, 0xB7, 0x87)  // movzx eax, word [rdi + status]
        emit32(martlet_offset_status)
        emit(0x04, 0x7F, 0x9E)  // add al, 127; sahf
    }

    mutating func loadX87() {
        emit(0x48, 0x0F, 0xAE, 0x8F)  // fxrstor64 [rdi + fx]
        emit32(fx)
    }

    /// Stores the image and empties the host's x87 registers. FNINIT costs 28 ns on some processors, EMMS next to nothing;
    /// EMMS does when the control word is the host's own and so nothing can be pending.
    mutating func storeX87() {
        emit(0x48, 0x0F, 0xAE, 0x87)  // fxsave64 [rdi + fx]
        emit32(fx)
        emit(0x66, 0x81, 0xBF)  // cmp word [rdi + fcw], 37Fh
        emit32(fx + Int32(FXImage.controlWord))
        emit(0x7F, 0x03)
        emit(0x75, 0x04, 0x0F, 0x77, 0xEB, 0x02, 0xDB, 0xE3)  // jne 1f; emms; jmp 2f; 1: fninit; 2:
    }

    /// Returns the next instruction.
    mutating func finish() {
        emit(0x48, 0x8D, 0x86)  // lea rax, [rsi + size of an instruction]
        emit32(Int32(MemoryLayout<martlet_insn>.stride))
        emit(0xC3)
    }

    mutating func finishPlain() { emit(0xC3) }
}
