internal import CHost

/// How much memory the host has, in bytes.
public struct HostMemory: Equatable, Sendable {
    public let total: UInt64
    /// What can be had without swapping, by the kernel's own estimate (MemAvailable in proc(5)).
    public let available: UInt64

    public init() {
        self.init(meminfo: readProcFile("/proc/meminfo"))
    }

    /// From the text of /proc/meminfo; what it does not say comes from sysinfo(2).
    init(meminfo: String) {
        var total: UInt64 = 0
        var free: UInt64 = 0
        host_memory(&total, &free)
        self.total = HostMemory.field("MemTotal", in: meminfo) ?? total
        available = HostMemory.field("MemAvailable", in: meminfo) ?? free
    }

    private static func field(_ name: String, in meminfo: String) -> UInt64? {
        for line in meminfo.split(separator: "\n") where line.hasPrefix(name + ":") {
            let words = line.dropFirst(name.utf8.count + 1).split(separator: " ")
            guard let kibibytes = words.first.flatMap({ UInt64($0) }) else { return nil }
            return kibibytes &* 1024
        }
        return nil
    }
}

/// What the host says about its processors (proc(5), /proc/cpuinfo).
public struct HostProcessor: Equatable, Sendable {
    public let flags: Set<String>
    public let modelName: String
    public let onlineCount: Int

    public init() {
        self.init(cpuinfo: readProcFile("/proc/cpuinfo"))
    }

    /// From the text of /proc/cpuinfo: its first processor speaks for all.
    public init(cpuinfo: String) {
        func value(of key: String) -> Substring? {
            for line in cpuinfo.split(separator: "\n") {
                guard let colon = line.firstIndex(of: ":") else { continue }
                let name = line[..<colon].split { $0 == " " || $0 == "\t" }.joined(separator: " ")
                if name == key { return line[line.index(after: colon)...] }
            }
            return nil
        }
        flags = Set((value(of: "flags") ?? "").split(separator: " ").map(String.init))
        modelName = (value(of: "model name") ?? "unknown").split(separator: " ").joined(separator: " ")
        onlineCount = host_online_processors()
    }
}

/// The host kernel's random numbers (getrandom(2)).
public enum HostRandom {
    public static func bytes(count: Int) -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
            while let base = buffer.baseAddress, initialized < count {
                let done = initialized
                let result = retryingInterrupted { host_random(base + done, count - done) }
                precondition(result > 0, "getrandom cannot fail once the kernel has booted")
                initialized += result
            }
        }
    }
}

/// A file of /proc as text; empty where it cannot be read.
private func readProcFile(_ path: String) -> String {
    guard let file = try? FileDescriptor.open(path) else { return "" }
    var bytes: [UInt8] = []
    while let chunk = try? file.read(upTo: 1 << 16), !chunk.isEmpty { bytes += chunk }
    return String(decoding: bytes, as: UTF8.self)
}
