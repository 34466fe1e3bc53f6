internal import CHost
internal import Hypervisor
internal import X86

/// `--cpu MODEL[,+FEATURE,-FEATURE…]`: what of the engine's processor a guest gets to see.
public struct CPUModel: Equatable, Sendable {
    /// Everything that the engine has, under two names.
    public static let names = ["default", "max"]
    /// No feature of CPUID but the absence of some: those by which a processor says that it needs no mitigations.
    public static let mitigations = "mitigations"
    private static let immunities = ["arch_capabilities", "bhi_ctrl"]

    private struct Change: Equatable {
        var name: String
        var adds: Bool
    }

    private var changes: [Change] = []

    public init() {}

    /// The words behind `--cpu`, later ones win.
    public init(_ text: String) throws(CPUModelError) {
        for (index, word) in text.split(separator: ",", omittingEmptySubsequences: false).enumerated() {
            if index == 0, Self.names.contains(String(word)) { continue }
            guard let sign = word.first, sign == "+" || sign == "-" else {
                throw CPUModelError(word: String(word), isModel: index == 0)
            }
            let name = String(word.dropFirst())
            guard name == Self.mitigations || CPUIDFeatures.named(name) != nil else {
                throw CPUModelError(word: name, isModel: false)
            }
            changes.append(Change(name: name, adds: sign == "+"))
        }
    }

    /// Whether the guest is to protect itself as on a processor that is not known to be safe.
    public var wantsMitigations: Bool { changes.last { $0.name == Self.mitigations }?.adds ?? false }

    /// The leaves that the guest gets, made from what the engine has.
    func applied(to leaves: [kvm_cpuid_entry2], engine: String) throws(MachineError) -> [kvm_cpuid_entry2] {
        var removed: Set<String> = []
        for change in changes {
            if change.name == Self.mitigations {
                for name in Self.immunities {
                    if change.adds { removed.insert(name) } else { removed.remove(name) }
                }
            } else if change.adds {
                for name in CPUIDFeatures.withNeeds(of: change.name).sorted() {
                    guard Self.has(name, leaves) else {
                        throw MachineError(
                            "The \(engine) engine's processor has no \(name) here, so --cpu cannot add \(change.name). "
                                + "Leave it out; martlet run --cpu help lists what there is.")
                    }
                    removed.remove(name)
                }
            } else {
                removed.formUnion(CPUIDFeatures.withDependents(of: change.name))
            }
        }
        return Self.hiding(removed, in: leaves)
    }

    /// The names of the features in some leaves, in the order of the table.
    static func features(of leaves: [kvm_cpuid_entry2]) -> [String] {
        CPUIDFeatures.all.map(\.name).filter { has($0, leaves) }
    }

    private static func has(_ name: String, _ leaves: [kvm_cpuid_entry2]) -> Bool {
        guard let feature = CPUIDFeatures.named(name),
            let entry = leaves.first(where: { $0.function == feature.leaf && $0.index == feature.subleaf })
        else { return false }
        return entry[feature.register] & feature.mask != 0
    }

    private static func hiding(_ names: Set<String>, in leaves: [kvm_cpuid_entry2]) -> [kvm_cpuid_entry2] {
        var result = leaves
        for feature in CPUIDFeatures.all where names.contains(feature.name) {
            for index in result.indices
            where result[index].function == feature.leaf && result[index].index == feature.subleaf {
                result[index][feature.register] &= ~feature.mask
            }
        }
        return ExtendedStateLeaves.trimmed(result, without: names)
    }
}

/// Leaf 0DH says which register files XSAVE knows and where they are: it has to fit the features (SDM vol. 1 §13.2).
private enum ExtendedStateLeaves {
    private static let leaf: UInt32 = 0xD
    /// State components by the feature that brings them.
    private static let components: [(feature: String, numbers: [UInt32])] = [
        ("mpx", [3, 4]), ("avx", [2]), ("avx512f", [5, 6, 7]), ("pku", [9]), ("enqcmd", [10]), ("amx_tile", [17, 18]),
    ]

    static func trimmed(_ leaves: [kvm_cpuid_entry2], without names: Set<String>) -> [kvm_cpuid_entry2] {
        if names.contains("xsave") { return leaves.filter { $0.function != leaf } }
        let gone = components.filter { names.contains($0.feature) }.flatMap(\.numbers)
        guard !gone.isEmpty else { return leaves }
        let mask = gone.reduce(UInt32(0)) { $0 | 1 << $1 }
        var result = leaves.filter { $0.function != leaf || !gone.contains($0.index) }
        // Legacy area and header, and behind them the last component that is left.
        let places = result.filter { $0.function == leaf && $0.index > 1 && $0.ecx & 1 == 0 }
        let size = places.reduce(UInt32(576)) { max($0, $1.ebx &+ $1.eax) }
        for index in result.indices where result[index].function == leaf && result[index].index == 0 {
            result[index].eax &= ~mask
            result[index].ebx = min(result[index].ebx, size)
            result[index].ecx = size
        }
        for index in result.indices where result[index].function == leaf && result[index].index == 1 {
            result[index].ecx &= ~mask
        }
        return result
    }
}

extension kvm_cpuid_entry2 {
    fileprivate subscript(register: CPUIDRegister) -> UInt32 {
        get {
            switch register {
            case .eax: eax
            case .ebx: ebx
            case .ecx: ecx
            case .edx: edx
            }
        }
        set {
            switch register {
            case .eax: eax = newValue
            case .ebx: ebx = newValue
            case .ecx: ecx = newValue
            case .edx: edx = newValue
            }
        }
    }
}

/// What is wrong with the words behind `--cpu`.
public struct CPUModelError: Error, Equatable, CustomStringConvertible {
    public var word: String
    public var isModel: Bool

    public var description: String {
        if isModel {
            let names = CPUModel.names.joined(separator: ", ")
            return "There is no processor model '\(word)'; the models are: \(names). Features follow as +NAME or -NAME."
        }
        if CPUIDFeatures.named(word) != nil || word == CPUModel.mitigations {
            return "A feature is added or hidden: write +\(word) or -\(word)."
        }
        let near = Self.near(word)
        let question = near.isEmpty ? "." : "; did you mean \(near.joined(separator: ", "))?"
        return "There is no processor feature '\(word)'\(question) All names: martlet run --cpu help."
    }

    /// Up to four names that are one or two letters away, or that begin or end alike.
    private static func near(_ word: String) -> [String] {
        guard !word.isEmpty, word.utf8.count <= 32 else { return [] }
        let names = CPUIDFeatures.all.map(\.name) + [CPUModel.mitigations]
        let ranked = names.map { (name: $0, distance: distance($0, word)) }
            .filter { $0.distance <= ($0.name.count > 4 ? 2 : 1) || $0.name.hasPrefix(word) || word.hasPrefix($0.name) }
            .sorted { ($0.distance, $0.name) < ($1.distance, $1.name) }
        return Array(ranked.map(\.name).prefix(4))
    }

    /// Letters to insert, drop or exchange (Levenshtein).
    private static func distance(_ left: String, _ right: String) -> Int {
        let (left, right) = (Array(left.utf8), Array(right.utf8))
        var row = Array(0...right.count)
        for (index, letter) in left.enumerated() {
            var diagonal = row[0]
            row[0] = index + 1
            for (column, other) in right.enumerated() {
                let above = row[column + 1]
                row[column + 1] = min(above + 1, row[column] + 1, diagonal + (letter == other ? 0 : 1))
                diagonal = above
            }
        }
        return row[right.count]
    }
}

extension EngineChoice {
    /// What `--cpu help` says.
    public func describeProcessor() throws(MachineError) -> String {
        let present: [String]
        do {
            present = CPUModel.features(of: GuestCPUID.singleProcessor(from: try system.supportedCPUID()))
        } catch {
            throw MachineError("The \(name) engine does not say what its processor has: \(error). See: martlet doctor")
        }
        let absent = CPUIDFeatures.all.map(\.name).filter { !present.contains($0) }
        return """
            --cpu MODEL[,+FEATURE,-FEATURE…]

            Models: default (also max) is everything that the engine's processor has.

            Features of the \(name) engine's processor here:
            \(Self.wrapped(present))

            Known by name, but not there:
            \(Self.wrapped(absent))

            -FEATURE hides a feature and all that need it from the guest. Registers that belong to it are gone; an
            instruction that has no switch of its own still works for a guest that does not look, as under KVM.
            +mitigations hides what says that the processor is not affected by Meltdown, Spectre and their kin
            (arch_capabilities, bhi_ctrl): the guest then protects itself, which takes time.

            """
    }

    private static func wrapped(_ names: [String]) -> String {
        var lines = [""]
        for name in names {
            if lines[lines.count - 1].count + name.count > 98 { lines.append("") }
            lines[lines.count - 1] += lines[lines.count - 1].isEmpty ? "  \(name)" : " \(name)"
        }
        return lines.joined(separator: "\n")
    }
}
