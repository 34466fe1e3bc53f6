/// The name that somebody may have meant.
enum NearestName {
    /// The closest of `names` that differs in few letters, or begins with what was written.
    static func of(_ wrong: String, among names: [String]) -> String? {
        let written = normalized(wrong)
        if let same = names.first(where: { normalized($0) == written }) { return same }
        let ranked = names.map { (name: $0, distance: distance(written, normalized($0))) }
        guard let best = ranked.min(by: { $0.distance < $1.distance }) else { return nil }
        if best.distance <= max(1, written.count / 3) { return best.name }
        return written.count >= 2 ? names.first { normalized($0).starts(with: written) } : nil
    }

    /// `noReboot` and `no_reboot` are `no-reboot`.
    private static func normalized(_ name: String) -> [Character] {
        name.filter { $0 != "-" && $0 != "_" }.lowercased().map { $0 }
    }

    /// How many letters have to be changed, added, left out or exchanged with their neighbour.
    private static func distance(_ one: [Character], _ other: [Character]) -> Int {
        var rows = [Array(0...other.count)]
        for i in 0..<one.count {
            var row = [i + 1]
            for j in 0..<other.count {
                var best = min(rows[i][j + 1] + 1, row[j] + 1, rows[i][j] + (one[i] == other[j] ? 0 : 1))
                if i > 0, j > 0, one[i] == other[j - 1], one[i - 1] == other[j] {
                    best = min(best, rows[i - 1][j - 1] + 1)
                }
                row.append(best)
            }
            rows.append(row)
        }
        return rows[one.count][other.count]
    }
}
