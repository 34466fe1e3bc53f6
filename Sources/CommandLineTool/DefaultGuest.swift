internal import Glibc
internal import Host
internal import VMM

/// The default guest's files, which scripts/default-guest puts into the cache directory.
struct DefaultGuest {
    let directory: String
    var kernelPath: String { directory + "/vmlinuz" }
    var initramfsPath: String { directory + "/initramfs.cpio" }

    /// What the kernel is told, and why (docs/decisions/0003 has the numbers):
    /// - `console=ttyS0 quiet`: warnings and worse on the serial console, nothing else;
    /// - `panic=-1`: restart at once after a panic, which `martlet run` reports;
    /// - `cryptomgr.notests`: no self-tests of ciphers that nobody uses here, half of a boot in software;
    /// - `nokaslr mitigations=off`: they protect the guest's kernel from its users, and here is one; without the first
    ///   a boot is a quarter shorter, and an address in a message means the same place in every boot (with
    ///   `--cpu +mitigations` the second is left out);
    /// - `tsc=reliable no_timer_check`: no watchdog and no test, which a busy host could fail, of clocks that the engine
    ///   keeps exact;
    /// - `i8042.noaux i8042.nokbd`: no keyboard and mouse to wait for;
    /// - `rdinit=/init`: our init.
    static func kernelOptions(mitigations: Bool) -> String {
        "console=ttyS0 quiet panic=-1 cryptomgr.notests nokaslr \(mitigations ? "" : "mitigations=off ")"
            + "tsc=reliable no_timer_check i8042.noaux i8042.nokbd rdinit=/init"
    }

    init(cacheDirectory: String? = Self.cacheDirectory) {
        directory = (cacheDirectory ?? "/root/.cache") + "/martlet/guest"
    }

    /// `${XDG_CACHE_HOME:-~/.cache}`, as the scripts find it.
    private static var cacheDirectory: String? {
        if let value = environmentVariable("XDG_CACHE_HOME"), !value.isEmpty { return value }
        return environmentVariable("HOME").map { $0 + "/.cache" }
    }

    /// Whether both files are there; they are checked when they are opened.
    var isPresent: Bool { access(kernelPath, R_OK) == 0 && access(initramfsPath, R_OK) == 0 }

    func requirePresent() throws(MachineError) {
        guard isPresent else {
            throw MachineError(
                "The default guest is not in \(directory). Run ./scripts/run to get it, or use --kernel FILE.")
        }
    }

    /// The packages it was made from, for people.
    var packages: String? {
        guard let file = try? RandomAccessFile(path: directory + "/manifest"),
            let bytes = try? file.readAll(limit: 64 << 10)
        else { return nil }
        let names = String(decoding: bytes, as: UTF8.self).split(separator: "\n")
            .filter { $0.hasPrefix("package ") }.map { $0.dropFirst("package ".count) }
        return names.isEmpty ? nil : names.joined(separator: ", ")
    }
}

func environmentVariable(_ name: String) -> String? {
    // Only the main thread runs when this is called, and nothing in this process changes the environment.
    getenv(name).map { String(cString: $0) }
}
