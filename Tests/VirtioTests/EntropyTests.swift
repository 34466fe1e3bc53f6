import Testing

@testable import Virtio

@Suite("Entropy device")
struct EntropyTests {
    @Test("Fills buffers of any size, up to its limit")
    func fills() throws {
        let driver = try ModelDriver(VirtioEntropy())
        try #require(driver.start())
        let first = try driver.request([.writable(64)])
        let second = try driver.request([.writable(64)])
        #expect(first?.written == 64 && first?.bytes != second?.bytes)
        #expect(try driver.request([.writable(40000), .writable(40000)])?.written == 65536)
        #expect(try driver.request([.readable([1])])?.written == 0)
        #expect(!driver.needsReset)
    }
}
