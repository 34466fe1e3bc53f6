/// A value of a configuration file, and the line that it is on.
struct ConfigurationNode: Equatable {
    indirect enum Value: Equatable {
        case string(String)
        /// As it is written.
        case number(String)
        case bool(Bool)
        case null
        case sequence([ConfigurationNode])
        case mapping([Member])
    }

    struct Member: Equatable {
        var name: String
        var line: Int
        var value: ConfigurationNode
    }

    var line: Int
    var value: Value

    /// Deeper than any real file; a bound for the readers' recursion.
    static let deepest = 32

    /// What a person calls its type.
    var kind: String {
        switch value {
        case .string: "a string"
        case .number: "a number"
        case .bool: "true or false"
        case .null: "nothing"
        case .sequence: "a list"
        case .mapping: "a mapping"
        }
    }
}

/// What is wrong in a configuration file, and where.
struct ConfigurationError: Error, Equatable, CustomStringConvertible {
    var line: Int
    var description: String
}
