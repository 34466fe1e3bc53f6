internal import ArgumentParser
internal import Glibc
internal import Host
internal import KernelKVM
internal import Net

/// `martlet doctor`: what this host offers, one line each.
struct DoctorCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor",
        abstract: "Says what this host offers, and what to do about what is missing.",
        discussion: "Ends with 0 if the default guest can run here.")

    func run() throws {
        let report = DoctorReport()
        do {
            try BorrowedDescriptor.standardOutput.write(Array(report.text.utf8))
        } catch {
            Message.error("Cannot write to standard output: \(error.reason).")
            throw ExitStatus.martletFailed
        }
        if !report.canRunDefaultGuest { throw ExitStatus(rawValue: 1) }
    }
}

/// What was found.
struct DoctorReport {
    private struct Finding {
        var topic: String
        var isFine: Bool
        var fact: String
        var advice = ""
    }

    private var findings: [Finding] = []
    private(set) var canRunDefaultGuest = true

    init() {
        addEngine()
        addProcessor()
        addMemory()
        addNetworks()
        addGuest()
        addFirmware()
        addPackages()
    }

    var text: String {
        var lines = ""
        for finding in findings {
            let padding = String(repeating: " ", count: max(1, 10 - finding.topic.count))
            lines += "\(finding.isFine ? "ok  " : "note") \(finding.topic)\(padding)\(finding.fact)"
            lines += finding.advice.isEmpty ? "\n" : "; \(finding.advice)\n"
        }
        return lines + "The default guest can\(canRunDefaultGuest ? " run: martlet run" : "not run yet.")\n"
    }

    private mutating func addEngine() {
        let probe = KVMSystem.probe()
        findings.append(
            Finding(topic: "kvm", isFine: probe.canRunUnmodifiedKernels, fact: probe.reason, advice: probe.advice))
        let engine = probe.canRunUnmodifiedKernels ? "kvm" : "soft"
        let kind = engine == "kvm" ? "at the processor's own speed" : "in software, which needs no hardware support"
        findings.append(Finding(topic: "engine", isFine: true, fact: "martlet run takes \(engine): \(kind)"))
    }

    private mutating func addProcessor() {
        let processor = HostProcessor()
        let wanted = ["vmx", "svm", "sse4_2", "avx2", "avx512f", "aes", "rdrand", "constant_tsc", "nonstop_tsc"]
        let present = wanted.filter { processor.flags.contains($0) }.joined(separator: " ")
        let name = processor.modelName.isEmpty ? "unknown processor" : processor.modelName
        let count = processor.onlineCount
        findings.append(
            Finding(topic: "processor", isFine: true, fact: "\(name), \(count) online, with \(present)"))
        if !processor.flags.contains("constant_tsc") {
            findings.append(
                Finding(
                    topic: "clock", isFine: false, fact: "the processor's time stamp counter is not constant",
                    advice: "the guest's clock may drift when the host changes its frequency"))
        }
    }

    private mutating func addMemory() {
        let memory = HostMemory()
        let isEnough = memory.available >= 600 << 20
        findings.append(
            Finding(
                topic: "memory", isFine: isEnough,
                fact: "\(memory.available >> 20) MiB available of \(memory.total >> 20) MiB",
                advice: isEnough ? "" : "the default guest takes up to 512 MiB: close something, or use --memory 256M"))
        if memory.total < 256 << 20 { canRunDefaultGuest = false }
    }

    /// Networks need nothing; taps are faster with it, where the engine is kvm.
    private mutating func addNetworks() {
        do throws(HostError) {
            _ = try VhostNet()
            let fact = "\(VhostNet.path) can be used for tap networks with the engine kvm"
            findings.append(Finding(topic: "vhost-net", isFine: true, fact: fact))
        } catch {
            findings.append(
                Finding(
                    topic: "vhost-net", isFine: true, fact: "tap networks go without (\(error.reason))",
                    advice: "with the engine kvm they may be faster: modprobe vhost_net, and let this user open "
                        + VhostNet.path))
        }
    }

    private mutating func addGuest() {
        let guest = DefaultGuest()
        if guest.isPresent {
            let packages = guest.packages.map { " (\($0))" } ?? ""
            findings.append(Finding(topic: "guest", isFine: true, fact: "\(guest.directory)\(packages)"))
        } else {
            canRunDefaultGuest = false
            findings.append(
                Finding(
                    topic: "guest", isFine: false, fact: "the default guest is not in \(guest.directory)",
                    advice: "run ./scripts/default-guest to get it"))
        }
    }

    private mutating func addFirmware() {
        let known = ["/usr/share/seabios/bios-256k.bin": "SeaBIOS", "/usr/share/OVMF/OVMF_CODE.fd": "OVMF"]
        let found = known.filter { access($0.key, R_OK) == 0 }.map(\.value).sorted().joined(separator: " and ")
        let fact = "kernels are started directly and need none"
        findings.append(
            Finding(topic: "firmware", isFine: true, fact: found.isEmpty ? fact : "\(fact) (\(found) installed)"))
    }

    private mutating func addPackages() {
        let tools = ["apt-get", "apt-cache", "dpkg-deb"]
        let missing = tools.filter { access("/usr/bin/" + $0, X_OK) != 0 }
        if missing.isEmpty {
            findings.append(Finding(topic: "packages", isFine: true, fact: "all that the default guest needs is there"))
        } else {
            findings.append(
                Finding(
                    topic: "packages", isFine: false, fact: "\(missing.joined(separator: ", ")) missing",
                    advice: "the default guest comes from Debian packages; elsewhere use --kernel and --initrd"))
        }
    }
}
