/// A plain C structure, also one with a union, as the bytes that it has in memory, for a saved state.
public enum StructureBytes {
    public static func of<T>(_ value: T) -> [UInt8] {
        precondition(_isPOD(T.self))
        return withUnsafeBytes(of: value) { [UInt8]($0) }
    }

    /// nil unless there are exactly as many bytes as `T` has.
    public static func value<T>(_ zero: T, from bytes: [UInt8]) -> T? {
        precondition(_isPOD(T.self))
        guard bytes.count == MemoryLayout<T>.size else { return nil }
        var value = zero
        // SAFETY: as many bytes as the structure has, and each pattern is a value of it.
        withUnsafeMutableBytes(of: &value) { $0.copyBytes(from: bytes) }
        return value
    }
}
