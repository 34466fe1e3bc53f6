internal import CHost

/// One line of a table of the software TLB: the fields with its number in the planes of `martlet_tlb`.
struct TLBLine {
    private let place: UnsafeMutablePointer<UInt64>

    @inline(__always) init(_ table: UnsafeMutablePointer<UInt64>, _ index: Int) { place = table + index }

    @inline(__always) var readTag: UInt64 {
        get { place[0] }
        nonmutating set { place[0] = newValue }
    }

    @inline(__always) var writeTag: UInt64 {
        get { place[Int(MARTLET_TLB_PLANE)] }
        nonmutating set { place[Int(MARTLET_TLB_PLANE)] = newValue }
    }

    /// Host address less guest address.
    @inline(__always) var addend: UInt64 {
        get { place[2 * Int(MARTLET_TLB_PLANE)] }
        nonmutating set { place[2 * Int(MARTLET_TLB_PLANE)] = newValue }
    }

    /// MARTLET_TLB_*, and from bit 12 on the page's guest-physical address.
    @inline(__always) var flags: UInt64 {
        get { place[3 * Int(MARTLET_TLB_PLANE)] }
        nonmutating set { place[3 * Int(MARTLET_TLB_PLANE)] = newValue }
    }
}
