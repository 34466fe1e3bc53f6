import Disk
import Testing

@testable import CommandLineTool
@testable import VMM
@testable import Virtio

@Suite("io_uring of disks")
struct DiskRingTests {
    private func configuration(_ transfers: BlockConfigurationOptions.Transfers?) throws -> DeviceConfiguration {
        let disk = ImageDisk(try RawDisk(try FileStorage(unnamedIn: "/tmp")))
        return .disk(disk, BlockConfigurationOptions(transfers: transfers))
    }

    @Test("Who moves the bytes is as asked for")
    func choice() throws {
        #expect(try DiskRing.make(for: configuration(.threads), isImmediate: false) == nil)
        #expect(try DiskRing.make(for: .entropy, isImmediate: false) == nil)
        #expect(try DiskRing.make(for: configuration(nil), isImmediate: true) == nil)
        let error = #expect(throws: MachineError.self) {
            try DiskRing.make(for: configuration(.ioUring), isImmediate: true)
        }
        #expect(error?.description.contains("lockstep") == true)
    }

    @Test("A host that forbids it has threads, unless it was asked for")
    func forbidden() throws {
        do {
            let ring = try DiskRing.make(for: configuration(.ioUring), isImmediate: false)
            #expect(ring != nil)
            #expect(try DiskRing.make(for: configuration(nil), isImmediate: false) != nil)
        } catch let error as MachineError {
            // On such a host, or under a filter of system calls.
            #expect(error.description.contains("aio=threads"))
            #expect(try DiskRing.make(for: configuration(nil), isImmediate: false) == nil)
        }
    }
}
