/// kvmclock (Documentation/virt/kvm/x86/msr.rst): how the guest turns its TSC into nanoseconds since the VM's start.
struct ParavirtualClock: Equatable, Sendable {
    /// A moment: the host's TSC and the guest's clock at it.
    var origin: HostInstant
    /// Guest nanoseconds at `origin`.
    var nanosecondsAtOrigin: UInt64
    var scale: Scale

    init(startingAt origin: HostInstant, tscFrequency: UInt64) {
        self.origin = origin
        nanosecondsAtOrigin = 0
        scale = Scale(tscFrequency: tscFrequency)
    }

    /// nanoseconds = ((ticks << shift) * multiplier) >> 32, where a negative shift is a right shift.
    struct Scale: Equatable, Sendable {
        var multiplier: UInt32
        var shift: Int8

        /// The multiplier has its top bit set: 32 significant bits.
        init(tscFrequency: UInt64) {
            let frequency = max(1, tscFrequency)
            var shift: Int8 = 0
            // multiplier / 2^32 * 2^shift = 10^9 / frequency, multiplier in 2^31 ..< 2^32.
            var (numerator, denominator) = (UInt64(1_000_000_000), min(frequency, 1 << 62))
            while numerator >= denominator {
                denominator <<= 1
                shift += 1
            }
            while numerator << 1 < denominator {
                numerator <<= 1
                shift -= 1
            }
            multiplier = UInt32(clamping: numerator.scaled(by: 1 << 32, over: denominator))
            self.shift = shift
        }

        func nanoseconds(forTicks ticks: UInt64) -> UInt64 {
            let shifted = shift >= 0 ? ticks << UInt64(shift) : ticks >> UInt64(-Int(shift))
            let product = shifted.multipliedFullWidth(by: UInt64(multiplier))
            return product.high << 32 | product.low >> 32
        }
    }

    /// What the guest computes at a host TSC value.
    func nanoseconds(atHostTSC tsc: UInt64) -> UInt64 {
        nanosecondsAtOrigin &+ scale.nanoseconds(forTicks: tsc.saturatingSubtract(origin.tsc))
    }

    /// KVM_SET_CLOCK.
    mutating func set(_ nanoseconds: UInt64, at now: HostInstant) {
        origin = now
        nanosecondsAtOrigin = nanoseconds
    }

    /// struct pvclock_vcpu_time_info, 32 bytes, with an even (valid) version.
    func timeInfo(version: UInt32, tscOffset: UInt64) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.append(littleEndian: version)
        bytes.append(littleEndian: UInt32(0))
        bytes.append(littleEndian: origin.tsc &+ tscOffset)
        bytes.append(littleEndian: nanosecondsAtOrigin)
        bytes.append(littleEndian: scale.multiplier)
        bytes.append(UInt8(bitPattern: scale.shift))
        // PVCLOCK_TSC_STABLE_BIT: every vCPU has the same origin and offset.
        bytes.append(contentsOf: [1, 0, 0])
        return bytes
    }

    /// struct pvclock_wall_clock, 12 bytes: the time of day when the guest's clock was 0.
    static func wallClock(version: UInt32, realtime: UInt64, clock: UInt64) -> [UInt8] {
        let boot = realtime.saturatingSubtract(clock)
        var bytes: [UInt8] = []
        bytes.append(littleEndian: version)
        bytes.append(littleEndian: UInt32(truncatingIfNeeded: boot / 1_000_000_000))
        bytes.append(littleEndian: UInt32(truncatingIfNeeded: boot % 1_000_000_000))
        return bytes
    }
}

extension [UInt8] {
    fileprivate mutating func append<T: FixedWidthInteger>(littleEndian value: T) {
        for shift in stride(from: 0, to: T.bitWidth, by: 8) { append(UInt8(truncatingIfNeeded: value >> T(shift))) }
    }
}
