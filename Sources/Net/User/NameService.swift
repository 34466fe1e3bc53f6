/// Answers the guest's DNS queries that go to no server (RFC 1035): the host's fixed name, and, where the policy has no
/// resolver, every other name with "does not exist".
struct NameService {
    enum Decision: Equatable {
        /// Something for the host's resolver, if the policy allows it.
        case ask
        case answer([UInt8])
        /// No query.
        case ignore
    }

    let policy: EgressPolicy
    let hasIPv6: Bool

    private enum RecordType {
        static let a: UInt16 = 1
        static let aaaa: UInt16 = 28
        static let any: UInt16 = 255
    }

    private enum ResponseCode {
        static let noError: UInt16 = 0
        static let noSuchName: UInt16 = 3
        static let notImplemented: UInt16 = 4
    }

    private static let headerSize = 12
    private static let classInternet: UInt16 = 1

    func decide(_ query: [UInt8]) -> Decision {
        // RFC 1035 §4.1.1: QR is the highest bit of the flags, then four bits of opcode.
        guard query.count >= NameService.headerSize, query[2] & 0x80 == 0 else { return .ignore }
        guard query[2] & 0x78 == 0, query.bigEndian16(at: 4) == 1, let question = Question(query) else {
            if policy.allowsResolver { return .ask }
            return .answer(response(to: query, question: [], code: ResponseCode.notImplemented, answer: []))
        }
        if question.name == UserNetworkLayout.hostName, policy.allowsHostName {
            return .answer(
                response(
                    to: query, question: question.bytes, code: ResponseCode.noError, answer: records(for: question)))
        }
        if policy.allowsResolver { return .ask }
        return .answer(response(to: query, question: question.bytes, code: ResponseCode.noSuchName, answer: []))
    }

    private struct Question {
        var name: String
        var type: UInt16
        var recordClass: UInt16
        var bytes: ArraySlice<UInt8>

        /// Nil when the name does not end in the packet, is compressed, or is longer than 255 bytes (RFC 1035 §3.1).
        init?(_ query: [UInt8]) {
            var offset = NameService.headerSize
            var labels: [String] = []
            while offset < query.count, query[offset] != 0 {
                let count = Int(query[offset])
                guard count <= 63, offset + 1 + count < query.count, offset + 1 + count - NameService.headerSize < 255
                else { return nil }
                let label = query[(offset + 1)...(offset + count)]
                labels.append(String(decoding: label, as: UTF8.self).lowercased())
                offset += 1 + count
            }
            guard offset + 5 <= query.count else { return nil }
            name = labels.joined(separator: ".")
            type = query.bigEndian16(at: offset + 1)
            recordClass = query.bigEndian16(at: offset + 3)
            bytes = query[NameService.headerSize..<offset + 5]
        }
    }

    /// The records of the host's name that the question asks for.
    private func records(for question: Question) -> [[UInt8]] {
        guard question.recordClass == NameService.classInternet else { return [] }
        var addresses: [IPAddress] = []
        if question.type == RecordType.a || question.type == RecordType.any {
            addresses.append(UserNetworkLayout.ipv4.host)
        }
        if hasIPv6, question.type == RecordType.aaaa || question.type == RecordType.any {
            addresses.append(UserNetworkLayout.ipv6.host)
        }
        return addresses.map(record)
    }

    /// A resource record whose name is a pointer to the question's (RFC 1035 §4.1.3, §4.1.4).
    private func record(_ address: IPAddress) -> [UInt8] {
        var record: [UInt8] = [0xC0, UInt8(NameService.headerSize)]
        let data: [UInt8]
        switch address {
        case .v4(let value):
            record.appendBigEndian(RecordType.a)
            data = (0..<4).map { UInt8(truncatingIfNeeded: value >> UInt32(24 - 8 * $0)) }
        case .v6(let value):
            record.appendBigEndian(RecordType.aaaa)
            data = (0..<16).map { UInt8(truncatingIfNeeded: value >> UInt128(120 - 8 * $0)) }
        }
        record.appendBigEndian(NameService.classInternet)
        record.appendBigEndian(UInt32(3600))
        record.appendBigEndian(UInt16(data.count))
        return record + data
    }

    private func response(
        to query: [UInt8], question: ArraySlice<UInt8>, code: UInt16, answer: [[UInt8]]
    ) -> [UInt8] {
        var result = Array(query[0..<2])
        // A response that is recursive as asked, and final: opcode and RD are the query's, RA is set.
        let flags = 0x8080 | UInt16(query[2] & 0x79) << 8 | code
        result.appendBigEndian(flags)
        result.appendBigEndian(UInt16(question.isEmpty ? 0 : 1))
        result.appendBigEndian(UInt16(answer.count))
        result += [0, 0, 0, 0]
        result += question
        for record in answer { result += record }
        return result
    }
}
