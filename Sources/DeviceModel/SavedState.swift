/// What a device's saved state can be refused for.
public enum SavedStateError: Error, Equatable, Sendable, CustomStringConvertible {
    case truncated(identifier: String)
    case trailingBytes(identifier: String, count: Int)
    case unknownVersion(identifier: String, version: UInt32)
    /// A field that no device of this kind can have written.
    case invalid(identifier: String, field: String)

    public var description: String {
        switch self {
        case .truncated(let identifier):
            "Cannot restore \(identifier): its saved state ends too early; the file is damaged, save again"
        case .trailingBytes(let identifier, let count):
            "Cannot restore \(identifier): \(count) unknown bytes follow its saved state; the file is damaged, save again"
        case .unknownVersion(let identifier, let version):
            "Cannot restore \(identifier): saved-state version \(version) is unknown; use the martlet that saved it"
        case .invalid(let identifier, let field):
            "Cannot restore \(identifier): its field \(field) has an impossible value; the file is damaged, save again"
        }
    }
}

/// A device's saved state: a value type of its own, apart from the runtime state, with a version of its own.
public protocol DeviceSavedState: Sendable, Equatable {
    /// The unit's name in a snapshot; never changes.
    static var identifier: String { get }
    /// What `encode` writes; rises with every change of the fields.
    static var version: UInt32 { get }

    func encode(into encoder: inout StateEncoder)
    init(from decoder: inout StateDecoder) throws(SavedStateError)
}

/// A device whose state can be saved. Restore is construction: next to this each has
/// `init(restoring: SavedState, …) throws(SavedStateError)` with the same host resources as its other initializer.
public protocol SavableDevice: BoardDevice {
    associatedtype SavedState: DeviceSavedState
    func save() -> SavedState
}

extension DeviceSavedState {
    /// Version and fields as bytes.
    public func encoded() -> [UInt8] {
        var encoder = StateEncoder()
        encoder.write(Self.version)
        encode(into: &encoder)
        return encoder.bytes
    }

    /// The opposite of `encoded()`; every byte must be used.
    public init(encoded bytes: [UInt8]) throws(SavedStateError) {
        var decoder = StateDecoder(bytes, identifier: Self.identifier)
        let version: UInt32 = try decoder.read()
        guard version == Self.version else {
            throw .unknownVersion(identifier: Self.identifier, version: version)
        }
        self = try Self(from: &decoder)
        guard decoder.remaining == 0 else {
            throw .trailingBytes(identifier: Self.identifier, count: decoder.remaining)
        }
    }
}

/// Writes a saved state's fields in order, little-endian.
public struct StateEncoder: Sendable {
    public private(set) var bytes: [UInt8] = []

    public init() {}

    public mutating func write<T: FixedWidthInteger>(_ value: T) {
        for index in 0..<(T.bitWidth / 8) {
            bytes.append(UInt8(truncatingIfNeeded: value >> T(index * 8)))
        }
    }

    public mutating func write(_ value: Bool) {
        bytes.append(value ? 1 : 0)
    }

    /// A count and the bytes.
    public mutating func write(_ value: [UInt8]) {
        write(UInt32(clamping: value.count))
        bytes.append(contentsOf: value)
    }

    /// Whether there is one, and the value.
    public mutating func write<T: FixedWidthInteger>(_ value: T?) {
        write(value != nil)
        if let value { write(value) }
    }
}

/// Reads what `StateEncoder` wrote; hostile input ends in an error.
public struct StateDecoder: Sendable {
    private let bytes: [UInt8]
    private var position = 0
    public let identifier: String

    public init(_ bytes: [UInt8], identifier: String) {
        self.bytes = bytes
        self.identifier = identifier
    }

    public var remaining: Int { bytes.count - position }

    public mutating func read<T: FixedWidthInteger>(_ type: T.Type = T.self) throws(SavedStateError) -> T {
        let size = T.bitWidth / 8
        guard remaining >= size else { throw .truncated(identifier: identifier) }
        var value: T = 0
        for index in 0..<size {
            value |= T(truncatingIfNeeded: bytes[position + index]) << T(index * 8)
        }
        position += size
        return value
    }

    public mutating func readBool(_ field: String) throws(SavedStateError) -> Bool {
        let value: UInt8 = try read()
        guard value <= 1 else { throw .invalid(identifier: identifier, field: field) }
        return value == 1
    }

    /// At most `limit` bytes.
    public mutating func readBytes(_ field: String, limit: Int) throws(SavedStateError) -> [UInt8] {
        let count = Int(try read(UInt32.self))
        guard count <= limit else { throw .invalid(identifier: identifier, field: field) }
        guard remaining >= count else { throw .truncated(identifier: identifier) }
        defer { position += count }
        return Array(bytes[position..<position + count])
    }

    public mutating func readOptional<T: FixedWidthInteger>(
        _ field: String, _ type: T.Type = T.self
    ) throws(SavedStateError) -> T? {
        try readBool(field) ? try read(type) : nil
    }
}
