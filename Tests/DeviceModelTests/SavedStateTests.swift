import Testing

@testable import DeviceModel

private struct Sample: DeviceSavedState {
    static let identifier = "sample"
    static let version: UInt32 = 2
    var number: UInt16
    var flag: Bool
    var bytes: [UInt8]
    var optional: Int64?

    func encode(into encoder: inout StateEncoder) {
        encoder.write(number)
        encoder.write(flag)
        encoder.write(bytes)
        encoder.write(optional)
    }

    init(number: UInt16, flag: Bool, bytes: [UInt8], optional: Int64?) {
        self.number = number
        self.flag = flag
        self.bytes = bytes
        self.optional = optional
    }

    init(from decoder: inout StateDecoder) throws(SavedStateError) {
        number = try decoder.read()
        flag = try decoder.readBool("flag")
        bytes = try decoder.readBytes("bytes", limit: 4)
        optional = try decoder.readOptional("optional")
    }
}

@Suite struct SavedStateTests {
    @Test func encodingIsStable() {
        let sample = Sample(number: 0x1234, flag: true, bytes: [7], optional: nil)
        #expect(sample.encoded() == [2, 0, 0, 0, 0x34, 0x12, 1, 1, 0, 0, 0, 7, 0])
    }

    @Test(arguments: [nil, -1, Int64.max] as [Int64?])
    func decodingInverts(optional: Int64?) throws {
        let sample = Sample(number: 9, flag: false, bytes: [1, 2, 3, 4], optional: optional)
        #expect(try Sample(encoded: sample.encoded()) == sample)
    }

    @Test(
        arguments: [
            ([], .truncated(identifier: "sample")), ([2, 0, 0, 0, 1], .truncated(identifier: "sample")),
            ([3, 0, 0, 0], .unknownVersion(identifier: "sample", version: 3)),
            ([2, 0, 0, 0, 1, 0, 2], .invalid(identifier: "sample", field: "flag")),
            ([2, 0, 0, 0, 1, 0, 1, 5, 0, 0, 0], .invalid(identifier: "sample", field: "bytes")),
            ([2, 0, 0, 0, 1, 0, 1, 4, 0, 0, 0, 1], .truncated(identifier: "sample")),
            ([2, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 9], .trailingBytes(identifier: "sample", count: 1)),
        ] as [([UInt8], SavedStateError)])
    func damageIsAnError(bytes: [UInt8], expected: SavedStateError) {
        #expect(throws: expected) { try Sample(encoded: bytes) }
    }
}
