internal import CHost

/// An operand size with the host's own arithmetic for it (CHost/cpu_alu.h).
protocol OperandWidth: FixedWidthInteger, UnsignedInteger, BitwiseCopyable {
    typealias Status = UnsafeMutablePointer<UInt16>
    static func add(_ a: Self, _ b: Self, _ status: Status) -> Self
    static func or(_ a: Self, _ b: Self, _ status: Status) -> Self
    static func adc(_ a: Self, _ b: Self, _ status: Status) -> Self
    static func sbb(_ a: Self, _ b: Self, _ status: Status) -> Self
    static func and(_ a: Self, _ b: Self, _ status: Status) -> Self
    static func sub(_ a: Self, _ b: Self, _ status: Status) -> Self
    static func xor(_ a: Self, _ b: Self, _ status: Status) -> Self
    static func cmp(_ a: Self, _ b: Self, _ status: Status) -> Self
    static func test(_ a: Self, _ b: Self, _ status: Status) -> Self
    static func inc(_ a: Self, _ status: Status) -> Self
    static func dec(_ a: Self, _ status: Status) -> Self
    static func neg(_ a: Self, _ status: Status) -> Self
    static func rol(_ a: Self, _ count: UInt8, _ status: Status) -> Self
    static func ror(_ a: Self, _ count: UInt8, _ status: Status) -> Self
    static func rcl(_ a: Self, _ count: UInt8, _ status: Status) -> Self
    static func rcr(_ a: Self, _ count: UInt8, _ status: Status) -> Self
    static func shl(_ a: Self, _ count: UInt8, _ status: Status) -> Self
    static func shr(_ a: Self, _ count: UInt8, _ status: Status) -> Self
    static func sar(_ a: Self, _ count: UInt8, _ status: Status) -> Self
    static func lockedAdd(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status)
    static func lockedOr(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status)
    static func lockedAdc(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status)
    static func lockedSbb(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status)
    static func lockedAnd(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status)
    static func lockedSub(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status)
    static func lockedXor(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status)
    static func lockedInc(_ memory: UnsafeMutableRawPointer, _ status: Status)
    static func lockedDec(_ memory: UnsafeMutableRawPointer, _ status: Status)
    static func lockedNeg(_ memory: UnsafeMutableRawPointer, _ status: Status)
    static func lockedXadd(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) -> Self
    static func lockedCmpxchg(
        _ memory: UnsafeMutableRawPointer, _ accumulator: Self, _ b: Self, _ status: Status
    ) -> Self
    static func exchange(_ memory: UnsafeMutableRawPointer, _ b: Self) -> Self
}

/// The operand sizes that have scans, multiplication and double shifts of one shape.
protocol WideOperandWidth: OperandWidth {
    static func shld(_ a: Self, _ b: Self, _ count: UInt8, _ status: Status) -> Self
    static func shrd(_ a: Self, _ b: Self, _ count: UInt8, _ status: Status) -> Self
    static func bsf(_ a: Self, _ b: Self, _ status: Status) -> Self
    static func bsr(_ a: Self, _ b: Self, _ status: Status) -> Self
    static func bt(_ a: Self, _ b: Self, _ status: Status) -> Self
    static func bts(_ a: Self, _ b: Self, _ status: Status) -> Self
    static func btr(_ a: Self, _ b: Self, _ status: Status) -> Self
    static func btc(_ a: Self, _ b: Self, _ status: Status) -> Self
    static func imul(_ a: Self, _ b: Self, _ status: Status) -> Self
    static func mul(_ a: Self, _ b: Self, _ high: UnsafeMutablePointer<Self>, _ status: Status) -> Self
    static func imulWide(_ a: Self, _ b: Self, _ high: UnsafeMutablePointer<Self>, _ status: Status) -> Self
}

extension UInt8: OperandWidth {
    @inline(__always) static func add(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_add8(a, b, status) }
    @inline(__always) static func or(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_or8(a, b, status) }
    @inline(__always) static func adc(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_adc8(a, b, status) }
    @inline(__always) static func sbb(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_sbb8(a, b, status) }
    @inline(__always) static func and(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_and8(a, b, status) }
    @inline(__always) static func sub(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_sub8(a, b, status) }
    @inline(__always) static func xor(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_xor8(a, b, status) }
    @inline(__always) static func cmp(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_cmp8(a, b, status) }
    @inline(__always) static func test(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_test8(a, b, status) }
    @inline(__always) static func inc(_ a: Self, _ status: Status) -> Self { alu_inc8(a, status) }
    @inline(__always) static func dec(_ a: Self, _ status: Status) -> Self { alu_dec8(a, status) }
    @inline(__always) static func neg(_ a: Self, _ status: Status) -> Self { alu_neg8(a, status) }
    @inline(__always) static func rol(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_rol8(a, count, status)
    }
    @inline(__always) static func ror(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_ror8(a, count, status)
    }
    @inline(__always) static func rcl(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_rcl8(a, count, status)
    }
    @inline(__always) static func rcr(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_rcr8(a, count, status)
    }
    @inline(__always) static func shl(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_shl8(a, count, status)
    }
    @inline(__always) static func shr(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_shr8(a, count, status)
    }
    @inline(__always) static func sar(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_sar8(a, count, status)
    }
    @inline(__always) static func lockedAdd(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_add8(memory, b, status)
    }
    @inline(__always) static func lockedOr(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_or8(memory, b, status)
    }
    @inline(__always) static func lockedAdc(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_adc8(memory, b, status)
    }
    @inline(__always) static func lockedSbb(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_sbb8(memory, b, status)
    }
    @inline(__always) static func lockedAnd(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_and8(memory, b, status)
    }
    @inline(__always) static func lockedSub(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_sub8(memory, b, status)
    }
    @inline(__always) static func lockedXor(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_xor8(memory, b, status)
    }
    @inline(__always) static func lockedInc(_ memory: UnsafeMutableRawPointer, _ status: Status) {
        alu_locked_inc8(memory, status)
    }
    @inline(__always) static func lockedDec(_ memory: UnsafeMutableRawPointer, _ status: Status) {
        alu_locked_dec8(memory, status)
    }
    @inline(__always) static func lockedNeg(_ memory: UnsafeMutableRawPointer, _ status: Status) {
        alu_locked_neg8(memory, status)
    }
    @inline(__always) static func lockedXadd(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) -> Self {
        alu_locked_xadd8(memory, b, status)
    }
    @inline(__always) static func lockedCmpxchg(
        _ memory: UnsafeMutableRawPointer, _ accumulator: Self, _ b: Self, _ status: Status
    ) -> Self {
        alu_locked_cmpxchg8(memory, accumulator, b, status)
    }
    @inline(__always) static func exchange(_ memory: UnsafeMutableRawPointer, _ b: Self) -> Self {
        alu_exchange8(memory, b)
    }
}

extension UInt16: WideOperandWidth {
    @inline(__always) static func add(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_add16(a, b, status) }
    @inline(__always) static func or(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_or16(a, b, status) }
    @inline(__always) static func adc(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_adc16(a, b, status) }
    @inline(__always) static func sbb(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_sbb16(a, b, status) }
    @inline(__always) static func and(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_and16(a, b, status) }
    @inline(__always) static func sub(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_sub16(a, b, status) }
    @inline(__always) static func xor(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_xor16(a, b, status) }
    @inline(__always) static func cmp(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_cmp16(a, b, status) }
    @inline(__always) static func test(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_test16(a, b, status) }
    @inline(__always) static func inc(_ a: Self, _ status: Status) -> Self { alu_inc16(a, status) }
    @inline(__always) static func dec(_ a: Self, _ status: Status) -> Self { alu_dec16(a, status) }
    @inline(__always) static func neg(_ a: Self, _ status: Status) -> Self { alu_neg16(a, status) }
    @inline(__always) static func rol(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_rol16(a, count, status)
    }
    @inline(__always) static func ror(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_ror16(a, count, status)
    }
    @inline(__always) static func rcl(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_rcl16(a, count, status)
    }
    @inline(__always) static func rcr(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_rcr16(a, count, status)
    }
    @inline(__always) static func shl(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_shl16(a, count, status)
    }
    @inline(__always) static func shr(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_shr16(a, count, status)
    }
    @inline(__always) static func sar(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_sar16(a, count, status)
    }
    @inline(__always) static func lockedAdd(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_add16(memory, b, status)
    }
    @inline(__always) static func lockedOr(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_or16(memory, b, status)
    }
    @inline(__always) static func lockedAdc(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_adc16(memory, b, status)
    }
    @inline(__always) static func lockedSbb(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_sbb16(memory, b, status)
    }
    @inline(__always) static func lockedAnd(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_and16(memory, b, status)
    }
    @inline(__always) static func lockedSub(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_sub16(memory, b, status)
    }
    @inline(__always) static func lockedXor(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_xor16(memory, b, status)
    }
    @inline(__always) static func lockedInc(_ memory: UnsafeMutableRawPointer, _ status: Status) {
        alu_locked_inc16(memory, status)
    }
    @inline(__always) static func lockedDec(_ memory: UnsafeMutableRawPointer, _ status: Status) {
        alu_locked_dec16(memory, status)
    }
    @inline(__always) static func lockedNeg(_ memory: UnsafeMutableRawPointer, _ status: Status) {
        alu_locked_neg16(memory, status)
    }
    @inline(__always) static func lockedXadd(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) -> Self {
        alu_locked_xadd16(memory, b, status)
    }
    @inline(__always) static func lockedCmpxchg(
        _ memory: UnsafeMutableRawPointer, _ accumulator: Self, _ b: Self, _ status: Status
    ) -> Self {
        alu_locked_cmpxchg16(memory, accumulator, b, status)
    }
    @inline(__always) static func exchange(_ memory: UnsafeMutableRawPointer, _ b: Self) -> Self {
        alu_exchange16(memory, b)
    }
    @inline(__always) static func shld(_ a: Self, _ b: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_shld16(a, b, count, status)
    }
    @inline(__always) static func shrd(_ a: Self, _ b: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_shrd16(a, b, count, status)
    }
    @inline(__always) static func bsf(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_bsf16(a, b, status) }
    @inline(__always) static func bsr(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_bsr16(a, b, status) }
    @inline(__always) static func bt(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_bt16(a, b, status) }
    @inline(__always) static func bts(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_bts16(a, b, status) }
    @inline(__always) static func btr(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_btr16(a, b, status) }
    @inline(__always) static func btc(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_btc16(a, b, status) }
    @inline(__always) static func imul(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_imul16(a, b, status) }
    @inline(__always) static func mul(
        _ a: Self, _ b: Self, _ high: UnsafeMutablePointer<Self>, _ status: Status
    ) -> Self {
        alu_mul16(a, b, high, status)
    }
    @inline(__always) static func imulWide(
        _ a: Self, _ b: Self, _ high: UnsafeMutablePointer<Self>, _ status: Status
    ) -> Self {
        alu_imulwide16(a, b, high, status)
    }
}

extension UInt32: WideOperandWidth {
    @inline(__always) static func add(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_add32(a, b, status) }
    @inline(__always) static func or(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_or32(a, b, status) }
    @inline(__always) static func adc(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_adc32(a, b, status) }
    @inline(__always) static func sbb(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_sbb32(a, b, status) }
    @inline(__always) static func and(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_and32(a, b, status) }
    @inline(__always) static func sub(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_sub32(a, b, status) }
    @inline(__always) static func xor(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_xor32(a, b, status) }
    @inline(__always) static func cmp(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_cmp32(a, b, status) }
    @inline(__always) static func test(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_test32(a, b, status) }
    @inline(__always) static func inc(_ a: Self, _ status: Status) -> Self { alu_inc32(a, status) }
    @inline(__always) static func dec(_ a: Self, _ status: Status) -> Self { alu_dec32(a, status) }
    @inline(__always) static func neg(_ a: Self, _ status: Status) -> Self { alu_neg32(a, status) }
    @inline(__always) static func rol(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_rol32(a, count, status)
    }
    @inline(__always) static func ror(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_ror32(a, count, status)
    }
    @inline(__always) static func rcl(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_rcl32(a, count, status)
    }
    @inline(__always) static func rcr(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_rcr32(a, count, status)
    }
    @inline(__always) static func shl(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_shl32(a, count, status)
    }
    @inline(__always) static func shr(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_shr32(a, count, status)
    }
    @inline(__always) static func sar(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_sar32(a, count, status)
    }
    @inline(__always) static func lockedAdd(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_add32(memory, b, status)
    }
    @inline(__always) static func lockedOr(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_or32(memory, b, status)
    }
    @inline(__always) static func lockedAdc(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_adc32(memory, b, status)
    }
    @inline(__always) static func lockedSbb(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_sbb32(memory, b, status)
    }
    @inline(__always) static func lockedAnd(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_and32(memory, b, status)
    }
    @inline(__always) static func lockedSub(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_sub32(memory, b, status)
    }
    @inline(__always) static func lockedXor(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_xor32(memory, b, status)
    }
    @inline(__always) static func lockedInc(_ memory: UnsafeMutableRawPointer, _ status: Status) {
        alu_locked_inc32(memory, status)
    }
    @inline(__always) static func lockedDec(_ memory: UnsafeMutableRawPointer, _ status: Status) {
        alu_locked_dec32(memory, status)
    }
    @inline(__always) static func lockedNeg(_ memory: UnsafeMutableRawPointer, _ status: Status) {
        alu_locked_neg32(memory, status)
    }
    @inline(__always) static func lockedXadd(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) -> Self {
        alu_locked_xadd32(memory, b, status)
    }
    @inline(__always) static func lockedCmpxchg(
        _ memory: UnsafeMutableRawPointer, _ accumulator: Self, _ b: Self, _ status: Status
    ) -> Self {
        alu_locked_cmpxchg32(memory, accumulator, b, status)
    }
    @inline(__always) static func exchange(_ memory: UnsafeMutableRawPointer, _ b: Self) -> Self {
        alu_exchange32(memory, b)
    }
    @inline(__always) static func shld(_ a: Self, _ b: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_shld32(a, b, count, status)
    }
    @inline(__always) static func shrd(_ a: Self, _ b: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_shrd32(a, b, count, status)
    }
    @inline(__always) static func bsf(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_bsf32(a, b, status) }
    @inline(__always) static func bsr(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_bsr32(a, b, status) }
    @inline(__always) static func bt(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_bt32(a, b, status) }
    @inline(__always) static func bts(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_bts32(a, b, status) }
    @inline(__always) static func btr(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_btr32(a, b, status) }
    @inline(__always) static func btc(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_btc32(a, b, status) }
    @inline(__always) static func imul(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_imul32(a, b, status) }
    @inline(__always) static func mul(
        _ a: Self, _ b: Self, _ high: UnsafeMutablePointer<Self>, _ status: Status
    ) -> Self {
        alu_mul32(a, b, high, status)
    }
    @inline(__always) static func imulWide(
        _ a: Self, _ b: Self, _ high: UnsafeMutablePointer<Self>, _ status: Status
    ) -> Self {
        alu_imulwide32(a, b, high, status)
    }
}

extension UInt64: WideOperandWidth {
    @inline(__always) static func add(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_add64(a, b, status) }
    @inline(__always) static func or(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_or64(a, b, status) }
    @inline(__always) static func adc(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_adc64(a, b, status) }
    @inline(__always) static func sbb(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_sbb64(a, b, status) }
    @inline(__always) static func and(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_and64(a, b, status) }
    @inline(__always) static func sub(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_sub64(a, b, status) }
    @inline(__always) static func xor(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_xor64(a, b, status) }
    @inline(__always) static func cmp(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_cmp64(a, b, status) }
    @inline(__always) static func test(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_test64(a, b, status) }
    @inline(__always) static func inc(_ a: Self, _ status: Status) -> Self { alu_inc64(a, status) }
    @inline(__always) static func dec(_ a: Self, _ status: Status) -> Self { alu_dec64(a, status) }
    @inline(__always) static func neg(_ a: Self, _ status: Status) -> Self { alu_neg64(a, status) }
    @inline(__always) static func rol(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_rol64(a, count, status)
    }
    @inline(__always) static func ror(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_ror64(a, count, status)
    }
    @inline(__always) static func rcl(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_rcl64(a, count, status)
    }
    @inline(__always) static func rcr(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_rcr64(a, count, status)
    }
    @inline(__always) static func shl(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_shl64(a, count, status)
    }
    @inline(__always) static func shr(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_shr64(a, count, status)
    }
    @inline(__always) static func sar(_ a: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_sar64(a, count, status)
    }
    @inline(__always) static func lockedAdd(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_add64(memory, b, status)
    }
    @inline(__always) static func lockedOr(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_or64(memory, b, status)
    }
    @inline(__always) static func lockedAdc(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_adc64(memory, b, status)
    }
    @inline(__always) static func lockedSbb(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_sbb64(memory, b, status)
    }
    @inline(__always) static func lockedAnd(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_and64(memory, b, status)
    }
    @inline(__always) static func lockedSub(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_sub64(memory, b, status)
    }
    @inline(__always) static func lockedXor(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) {
        alu_locked_xor64(memory, b, status)
    }
    @inline(__always) static func lockedInc(_ memory: UnsafeMutableRawPointer, _ status: Status) {
        alu_locked_inc64(memory, status)
    }
    @inline(__always) static func lockedDec(_ memory: UnsafeMutableRawPointer, _ status: Status) {
        alu_locked_dec64(memory, status)
    }
    @inline(__always) static func lockedNeg(_ memory: UnsafeMutableRawPointer, _ status: Status) {
        alu_locked_neg64(memory, status)
    }
    @inline(__always) static func lockedXadd(_ memory: UnsafeMutableRawPointer, _ b: Self, _ status: Status) -> Self {
        alu_locked_xadd64(memory, b, status)
    }
    @inline(__always) static func lockedCmpxchg(
        _ memory: UnsafeMutableRawPointer, _ accumulator: Self, _ b: Self, _ status: Status
    ) -> Self {
        alu_locked_cmpxchg64(memory, accumulator, b, status)
    }
    @inline(__always) static func exchange(_ memory: UnsafeMutableRawPointer, _ b: Self) -> Self {
        alu_exchange64(memory, b)
    }
    @inline(__always) static func shld(_ a: Self, _ b: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_shld64(a, b, count, status)
    }
    @inline(__always) static func shrd(_ a: Self, _ b: Self, _ count: UInt8, _ status: Status) -> Self {
        alu_shrd64(a, b, count, status)
    }
    @inline(__always) static func bsf(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_bsf64(a, b, status) }
    @inline(__always) static func bsr(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_bsr64(a, b, status) }
    @inline(__always) static func bt(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_bt64(a, b, status) }
    @inline(__always) static func bts(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_bts64(a, b, status) }
    @inline(__always) static func btr(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_btr64(a, b, status) }
    @inline(__always) static func btc(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_btc64(a, b, status) }
    @inline(__always) static func imul(_ a: Self, _ b: Self, _ status: Status) -> Self { alu_imul64(a, b, status) }
    @inline(__always) static func mul(
        _ a: Self, _ b: Self, _ high: UnsafeMutablePointer<Self>, _ status: Status
    ) -> Self {
        alu_mul64(a, b, high, status)
    }
    @inline(__always) static func imulWide(
        _ a: Self, _ b: Self, _ high: UnsafeMutablePointer<Self>, _ status: Status
    ) -> Self {
        alu_imulwide64(a, b, high, status)
    }
}
