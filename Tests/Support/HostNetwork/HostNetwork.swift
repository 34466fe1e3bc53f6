internal import Glibc
internal import Host
internal import HostProcess
internal import Synchronization

/// Runs `body` on a thread in a network namespace of its own, empty but for a loopback: what it opens there stays
/// usable. Nil where that is not permitted.
public func inNewNetwork<Result: Sendable>(_ body: @escaping @Sendable () throws -> Result) throws -> Result? {
    let outcome = Mutex<Swift.Result<Result, any Error>?>(nil)
    try withoutActuallyEscaping({ @Sendable () -> Void in
        guard unshareNetwork() else { return }
        _ = shell("ip link set lo up")
        let result = Swift.Result { try body() }
        outcome.withLock { $0 = result }
    }) { run in
        try HostThread(name: "namespace", run).join()
    }
    return try outcome.withLock { try $0?.get() }
}

/// unshare(CLONE_NEWNET), which the Glibc module does not show. Only the calling thread moves.
private func unshareNetwork() -> Bool {
    let newNetwork: Int32 = 0x4000_0000
    guard let symbol = dlsym(dlopen(nil, RTLD_NOW), "unshare") else { return false }
    // SAFETY: the function's type in unshare(2).
    return unsafeBitCast(symbol, to: (@convention(c) (Int32) -> Int32).self)(newNetwork) == 0
}

public let canMakeNetworks = ((try? inNewNetwork { true }) ?? nil) != nil && exists("/dev/net/tun") && has("ip")

public func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

public func has(_ command: String) -> Bool { shell("command -v \(command)").status == 0 }

/// What a command printed, and its status.
public func shell(_ command: String) -> (output: String, status: Int32) {
    guard
        let process = try? HostProcess(
            "/bin/sh", ["-c", command], input: .inherited, output: .pipe, errors: .output)
    else { return ("", -1) }
    let bytes = process.readToEnd()
    process.waitUntilExit()
    return (String(decoding: bytes, as: UTF8.self), process.status)
}

/// A path of our own.
public func temporaryPath(_ name: String) -> String {
    "/tmp/martlet-net-test-\(getpid())-\(HostClock.monotonicNanoseconds)-\(name)"
}
