internal import ArgumentParser
internal import SoftKVM
internal import VMM

/// `--trace KINDS[:FILTERS]`, such as `faults:vector=14,user` or `blocks,exits:rip=0x100000-0x1fffff`.
enum TraceOption {
    static func parse(_ text: String) throws -> TraceRequest {
        let halves = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        var kinds: Set<TraceRequest.Kind> = []
        for name in halves[0].split(separator: ",", omittingEmptySubsequences: false) {
            guard let kind = TraceRequest.Kind(rawValue: String(name)) else {
                throw ValidationError("What can be traced are: blocks, exits, faults.")
            }
            kinds.insert(kind)
        }
        var request = TraceRequest(kinds)
        guard halves.count == 2 else { return request }
        for filter in halves[1].split(separator: ",", omittingEmptySubsequences: false) {
            try add(String(filter), to: &request)
        }
        return request
    }

    private static func add(_ filter: String, to request: inout TraceRequest) throws {
        let pair = filter.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        switch (pair[0], pair.count) {
        case ("user", 1), ("kernel", 1):
            let isUser = pair[0] == "user"
            guard request.isUser != !isUser else {
                throw ValidationError("Nothing is both user and kernel; without either, both are traced.")
            }
            request.isUser = isUser
        case ("entries", 1):
            try require(.blocks, for: filter, request)
            request.includesEntries = true
        case ("rip", 2): request.rips.append(try range(pair[1]))
        case ("address", 2):
            guard !request.kinds.isDisjoint(with: [.exits, .faults]) else {
                throw ValidationError("address= is of exits and faults; for blocks use rip=.")
            }
            request.addresses.append(try range(pair[1]))
        case ("port", 2):
            try require(.exits, for: "port=", request)
            request.ports.append(try range(pair[1], upTo: 0xffff))
        case ("vector", 2):
            try require(.faults, for: "vector=", request)
            request.vectors.append(try range(pair[1], upTo: 255))
        default:
            throw ValidationError(
                "'\(filter)' is no filter; there are user, kernel, rip=, address=, port=, vector= and entries.")
        }
    }

    private static func require(_ kind: TraceRequest.Kind, for filter: String, _ request: TraceRequest) throws {
        guard request.kinds.contains(kind) else {
            throw ValidationError("\(filter) is of \(kind.rawValue), which are not among what is traced.")
        }
    }

    /// NUMBER, FIRST-LAST or START+LENGTH, each decimal or 0x….
    static func range(_ text: String, upTo limit: UInt64 = .max) throws -> ClosedRange<UInt64> {
        let failure = ValidationError("'\(text)' is no range; write 14, 0x3f8-0x3ff or 0x1000+0x200.")
        if let separator = text.dropFirst().firstIndex(where: { $0 == "-" || $0 == "+" }) {
            guard let first = number(text[..<separator]), let second = number(text[text.index(after: separator)...])
            else { throw failure }
            let (end, overflow) = text[separator] == "-" ? (second, false) : first.addingReportingOverflow(second &- 1)
            guard !overflow, second > 0 || text[separator] == "-", first <= end, end <= limit else { throw failure }
            return first...end
        }
        guard let value = number(Substring(text)), value <= limit else { throw failure }
        return value...value
    }

    static func number(_ text: Substring) -> UInt64? {
        // UInt64(_:) takes a sign, which none of these has.
        guard text.first?.isHexDigit == true else { return nil }
        return text.lowercased().hasPrefix("0x") ? UInt64(text.dropFirst(2), radix: 16) : UInt64(text)
    }
}

/// `--symbols FILE[@ADDRESS]`.
enum SymbolsOption {
    static func parse(_ text: String) throws -> SymbolFile {
        if let separator = text.lastIndex(of: "@"),
            let address = TraceOption.number(text[text.index(after: separator)...])
        {
            return try nonempty(SymbolFile(path: String(text[..<separator]), loadAddress: address))
        }
        return try nonempty(SymbolFile(path: text))
    }

    private static func nonempty(_ file: SymbolFile) throws -> SymbolFile {
        guard !file.path.isEmpty else { throw ValidationError("It has no file name; write FILE or FILE@0x1000.") }
        return file
    }
}

/// `--trace-limit N`.
enum TraceLimitOption {
    static func parse(_ text: String) throws -> UInt64 {
        guard let number = TraceOption.number(Substring(text)), number > 0 else {
            throw ValidationError("Write a number of lines, at least 1.")
        }
        return number
    }
}
