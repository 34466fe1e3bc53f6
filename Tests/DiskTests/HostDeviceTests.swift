internal import Disk
internal import Foundation
internal import HostProcess
internal import Testing

/// A block device of this host with a file behind it (losetup(8)), as long as the object lives.
final class LoopDevice {
    static let missing: Comment = "no loop devices here (losetup needs root and /dev/loop-control)"
    static let areAvailable: Bool = {
        guard let scratch = try? Scratch() else { return false }
        return (try? LoopDevice(scratch.path("file"), size: 1 << 20)) != nil
    }()

    let path: String
    let backing: String

    init(_ file: String, size: Int, isReadOnly: Bool = false) throws {
        try Data().write(to: URL(filePath: file))
        let handle = try #require(FileHandle(forWritingAtPath: file))
        try handle.truncate(atOffset: UInt64(size))
        try handle.close()
        let result = try Self.losetup(["--find", "--show"] + (isReadOnly ? ["--read-only"] : []) + [file])
        path = result.trimmingCharacters(in: .whitespacesAndNewlines)
        backing = file
    }

    deinit { _ = try? Self.losetup(["--detach", path]) }

    private static func losetup(_ arguments: [String]) throws -> String {
        let process = try HostProcess("/usr/sbin/losetup", arguments, output: .pipe, errors: .nothing)
        let text = process.readToEnd()
        process.waitUntilExit()
        guard process.status == 0 else { throw CocoaError(.executableLoad) }
        return String(decoding: text, as: UTF8.self)
    }
}

@Suite("Block devices of the host", .serialized, .enabled(if: LoopDevice.areAvailable, LoopDevice.missing))
struct HostDeviceTests {
    private static let size = 3 << 20

    @Test("A raw disk on a device is its bytes", arguments: [CacheMode.writeback, .writethrough, .none])
    func raw(cache: CacheMode) throws {
        let scratch = try Scratch()
        let device = try LoopDevice(scratch.path("file"), size: Self.size)
        let disk = try RawDisk(try FileStorage(path: device.path, isWritable: true, cache: cache))
        #expect(disk.size == UInt64(Self.size))
        #expect(disk.capabilities.logicalBlockSize == 512)
        var model = ModelDisk(size: Self.size, seed: 7)
        for _ in 0..<300 { try model.step(disk, clusterSize: 4096) }
        let end = UInt64(Self.size)
        #expect(throws: DiskError.self) { try disk.write([1], at: end) }
        try disk.flush()
        try disk.close()
        #expect(try Data(contentsOf: URL(filePath: device.backing)) == Data(model.bytes))
    }

    @Test("A qcow2 image on a device", arguments: [CacheMode.writeback, .none])
    func qcow2(cache: CacheMode) throws {
        let scratch = try Scratch()
        let device = try LoopDevice(scratch.path("file"), size: 16 << 20)
        let image = scratch.path("image")
        try DiskImage.createQCOW2(image, size: UInt64(Self.size), QCOW2Options())
        let content = try Data(contentsOf: URL(filePath: image))
        let handle = try #require(FileHandle(forWritingAtPath: device.path))
        try handle.write(contentsOf: content)
        try handle.close()
        var options = DiskImage.Options(isWritable: true)
        options.cache = cache
        let disk = try DiskImage.openQCOW2(device.path, options)
        var model = ModelDisk(size: Self.size, seed: 11)
        for _ in 0..<300 { try model.step(disk, clusterSize: 65536) }
        #expect(try disk.read(count: Self.size, at: 0) == model.bytes)
        try disk.close()
        let again = try DiskImage.openQCOW2(device.path, DiskImage.Options(isWritable: false))
        #expect(try again.read(count: Self.size, at: 0) == model.bytes)
        #expect(try again.check().isClean)
        try again.close()
        if QemuImg.isInstalled { try QemuImg.expectClean(device.path) }
    }

    @Test("A device that may not be written says so, one in use too")
    func refused() throws {
        let scratch = try Scratch()
        let locked = try LoopDevice(scratch.path("readonly"), size: 1 << 20, isReadOnly: true)
        let error = #expect(throws: DiskError.self) { try FileStorage(path: locked.path, isWritable: true) }
        #expect(error?.description.contains(locked.path) == true)
        let reader = try RawDisk(try FileStorage(path: locked.path, isWritable: false))
        #expect(reader.capabilities.isReadOnly)
        #expect(try reader.read(count: 512, at: 0) == [UInt8](repeating: 0, count: 512))
        try reader.close()

        let device = try LoopDevice(scratch.path("file"), size: 1 << 20)
        let writer = try FileStorage(path: device.path, isWritable: true)
        let second = #expect(throws: DiskError.self) { try FileStorage(path: device.path, isWritable: true) }
        #expect(second?.kind == .inUse)
        writer.close()
    }

    @Test("Full: an error, and what was written stays")
    func full() throws {
        let scratch = try Scratch()
        let device = try LoopDevice(scratch.path("file"), size: 1 << 20)
        let image = scratch.path("image")
        try DiskImage.createQCOW2(image, size: 8 << 20, QCOW2Options())
        let handle = try #require(FileHandle(forWritingAtPath: device.path))
        try handle.write(contentsOf: try Data(contentsOf: URL(filePath: image)))
        try handle.close()
        let disk = try DiskImage.openQCOW2(device.path, DiskImage.Options(isWritable: true))
        let cluster = [UInt8](repeating: 0xA5, count: 65536)
        var written = 0
        #expect(throws: DiskError.self) {
            while written < 128 {
                try disk.write(cluster, at: UInt64(written) << 16)
                written += 1
            }
        }
        #expect(written > 4)
        for index in 0..<written { #expect(try disk.read(count: 65536, at: UInt64(index) << 16) == cluster) }
        try disk.flush()
        try disk.close()
        let again = try DiskImage.openQCOW2(device.path, DiskImage.Options(isWritable: false))
        for index in 0..<written { #expect(try again.read(count: 65536, at: UInt64(index) << 16) == cluster) }
        try again.close()
    }
}
