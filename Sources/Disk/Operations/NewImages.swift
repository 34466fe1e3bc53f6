internal import Host

extension DiskImage {
    /// Makes a raw image. The file must not exist.
    public static func createRaw(_ path: String, size: UInt64, _ preallocation: Preallocation = .off) throws(DiskError)
    {
        guard preallocation != .metadata else {
            throw DiskError(
                .invalid, "Cannot create \(path): a raw image has no metadata. Preallocate with falloc or full")
        }
        let storage = try FileStorage(path: path, isWritable: true, createsNew: true)
        defer { storage.close() }
        try removing(path) { () throws(DiskError) in
            try storage.truncate(to: size)
            if preallocation == .falloc { try storage.allocate(0..<size) }
            if preallocation == .full { try writeZeroes(storage, size) }
            try storage.flush()
        }
    }

    private static func writeZeroes(_ storage: FileStorage, _ size: UInt64) throws(DiskError) {
        let zeros = PageBuffer(count: 1 << 20)
        var offset: UInt64 = 0
        while offset < size {
            let count = Int(min(UInt64(zeros.count), size - offset))
            try storage.write(zeros.memory(0..<count), at: offset)
            offset += UInt64(count)
        }
    }

    /// Makes a qcow2 image, and its data file if there is none yet. The image's file must not exist.
    public static func createQCOW2(_ path: String, size: UInt64, _ options: QCOW2Options) throws(DiskError) {
        try options.check(path, size: min(size, 1 << 62))
        let storage = try FileStorage(path: path, isWritable: true, createsNew: true)
        defer { storage.close() }
        try removing(path) { () throws(DiskError) in
            if let name = options.dataFile {
                let dataPath = resolve(name, besides: path)
                if !HostPath.exists(dataPath) { try createRaw(dataPath, size: size) }
            }
            try QCOW2Disk.create(in: storage, size: size, options)
            guard options.preallocation != .off || options.dataFile != nil else { return }
            let header = try QCOW2Header.read(from: storage)
            var data: FileStorage?
            if let name = options.dataFile {
                data = try FileStorage(path: resolve(name, besides: path), isWritable: true)
                try data?.truncate(to: size)
            }
            let disk = try QCOW2Disk.start(storage, data, header, backing: nil, Options(isWritable: true))
            try disk.preallocate(options.preallocation)
            try disk.close()
        }
    }

    /// An image as a disk whose writes are thrown away: they go to a qcow2 image in a file without a name in
    /// `directory`. The image itself is opened for reading, with the lock of a reader.
    public static func openForThrowaway(
        _ path: String, _ format: DiskFormat, directory: String
    ) throws(DiskError) -> QCOW2Disk {
        let base = try open(path, format, Options(isWritable: false))
        let overlay = try FileStorage(unnamedIn: directory)
        // Its header names no backing file: nobody opens it by that.
        try QCOW2Disk.create(in: overlay, size: base.size, QCOW2Options())
        return try openQCOW2(overlay, backing: base, Options(isWritable: true))
    }

    /// Runs `body`; where it fails, the new file goes.
    private static func removing(_ path: String, _ body: () throws(DiskError) -> Void) throws(DiskError) {
        do throws(DiskError) {
            try body()
        } catch {
            try? HostPath.remove(path)
            throw error
        }
    }
}
