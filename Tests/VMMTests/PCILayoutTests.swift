internal import DeviceModel
internal import Testing

@testable internal import VMM

@Suite("PCI layout")
struct PCILayoutTests {
    @Test("As many as there are slots are on bus 0, in their order", arguments: [0, 1, 31])
    func direct(count: Int) {
        let layout = PCILayout(count: count)
        #expect(layout.places.map(\.address) == (0..<count).map { PCIAddress(device: UInt8($0 + 1)) })
        #expect(layout.places.allSatisfy { $0.bus == nil })
        #expect(layout.slots == (0..<count).map { UInt8($0 + 1) })
    }

    @Test(
        "More are behind root ports in the last slots", arguments: [(32, 30), (38, 30), (39, 29), (40, 29), (248, 0)])
    func ports(count: Int, direct: Int) {
        let layout = PCILayout(count: count)
        #expect(layout.places.count == count)
        #expect(layout.places.prefix(direct).allSatisfy { $0.bus == nil })
        let behind = layout.places.dropFirst(direct)
        #expect(behind.map(\.bus) == (0..<count - direct).map { UInt8($0 + 1) })
        #expect(Set(layout.places.map(\.address)).count == count)
        // A slot whose function 0 is missing is none to a guest.
        for place in behind { #expect(behind.contains { $0.address == PCIAddress(device: place.address.device) }) }
        #expect(layout.places.allSatisfy { (1...31).contains($0.address.device) })
        for slot in layout.slots {
            #expect(layout.isMultifunction(slot) == (layout.places.count { $0.address.device == slot } > 1))
        }
    }
}
