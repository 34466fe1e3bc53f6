internal import CHost
internal import Glibc

/// Address space for the engine's tables: zeros, in memory as far as they are used, between inaccessible pages. A wrong
/// address in translated code, which no compiler has instrumented, then ends the process instead of changing what lies
/// beside the table.
enum EngineMemory {
    /// Bytes on each side.
    private static let guardSize = 64 << 10

    static func map<T>(_ count: Int, of type: T.Type) -> UnsafeMutablePointer<T> {
        let size = mappedSize(count, type)
        let whole = mmap(
            nil, size + 2 * guardSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let whole, whole != MAP_FAILED, mprotect(whole + guardSize, size, PROT_READ | PROT_WRITE) == 0 else {
            preconditionFailure("no address space for the engine's tables")
        }
        return (whole + guardSize).bindMemory(to: type, capacity: count)
    }

    /// What `map` returned for as many.
    static func unmap<T>(_ start: UnsafeMutablePointer<T>, _ count: Int) {
        let size = mappedSize(count, T.self)
        host_unpoison(start, size)
        munmap(UnsafeMutableRawPointer(start) - guardSize, size + 2 * guardSize)
    }

    private static func mappedSize<T>(_ count: Int, _ type: T.Type) -> Int {
        (max(1, count) * MemoryLayout<T>.stride + Int(pageMask)) & ~Int(pageMask)
    }
}
