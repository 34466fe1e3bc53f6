/// How often each cluster is referred to, counted from the tables. In pages, made where there is something to count: a
/// sparse file may have more clusters than there is memory.
struct ReferenceCounter {
    private static let pageBits: UInt64 = 12
    private var pages: [UInt64: [UInt32]] = [:]
    private(set) var end: UInt64 = 0

    subscript(cluster: UInt64) -> UInt64 {
        pages[cluster >> ReferenceCounter.pageBits].map {
            UInt64($0[Int(cluster & ((1 << ReferenceCounter.pageBits) - 1))])
        } ?? 0
    }

    mutating func add(_ cluster: UInt64) {
        let size = 1 << Int(ReferenceCounter.pageBits)
        let index = Int(cluster & UInt64(size - 1))
        pages[cluster >> ReferenceCounter.pageBits, default: [UInt32](repeating: 0, count: size)][index] &+= 1
        end = max(end, cluster + 1)
    }

    /// All clusters that are counted, in order.
    var clusters: [UInt64] {
        var result: [UInt64] = []
        for key in pages.keys.sorted() {
            guard let page = pages[key] else { continue }
            for (index, count) in page.enumerated() where count > 0 {
                result.append(key << ReferenceCounter.pageBits + UInt64(index))
            }
        }
        return result
    }
}
