internal import Glibc
internal import Host
internal import Net
internal import Platform
internal import SoftKVM
internal import VMM
internal import Virtio

/// One `martlet run`, from the parsed options to the exit status.
struct RunSession {
    private let options: RunCommand
    private let imageBoot: ImageBoot?
    private let startedAt: UInt64
    private let signals: SignalSource

    /// Takes over the signals first, so that Ctrl-C ends every later phase in order.
    init(_ options: RunCommand, startedAt: UInt64) throws(MachineError) {
        self.options = options
        imageBoot = try ImageBoot(options)
        self.startedAt = startedAt
        try Self.requireStandardStreams()
        do {
            signals = try SignalSource([.interrupt, .terminate, .hangUp, .quit, .continue, .windowChange])
        } catch {
            throw MachineError("\(error). Raise the limit of open files (ulimit -n) and try again.")
        }
    }

    func run() throws(MachineError) -> ExitStatus {
        let mode = self.mode
        let isTyping = mode != .command && BorrowedDescriptor.standardInput.isTerminal
        let configuration = try machineConfiguration(mode, newline: isTyping ? "\r" : "")
        defer { NetworkOptions.close(configuration.devices) }
        let output = try ObservationOutput(options, startedAt: startedAt, isRawTerminal: isTyping)
        let engine = try EngineChoice(options.accel, software: options.engine, observation: output.observation)
        if options.verbose {
            Message.note("engine \(engine.name): \(engine.reason)")
            Message.note(
                "\(configuration.memorySize >> 20) MiB, command line: \(configuration.commandLine ?? "by the kind of kernel")"
            )
        }

        let terminal = isTyping ? try? RawTerminal(.standardInput) : nil
        defer { terminal?.restore() }
        let console = ConsoleConfiguration(mode: mode, hasEscapes: isTyping, showsConsole: options.verbose)
        let session = try MachineSession(
            configuration, console: console, engine: engine,
            restarts: !options.noReboot && mode != .command, signals: signals, startedAt: startedAt,
            deadline: deadline, observer: observer(terminal), symbols: output.symbols,
            asksBalloons: options.verbose && options.engine != .lockstep)
        let end: SessionEnd
        do throws(MachineError) {
            end = try session.run()
        } catch {
            try? Self.closeDevices(configuration)
            throw error
        }
        terminal?.restore()
        try Self.closeDevices(configuration)
        if options.verbose {
            NetworkOptions.figures(configuration.devices).forEach(Message.note)
            BalloonOption.figures(configuration.devices).forEach(Message.note)
        }
        output.finish(session.profile, verbose: options.verbose)
        return EndReport(end: end, trace: session.trace, engineName: engine.name, options: options, isTyping: isTyping)
            .tell()
    }

    /// A descriptor that is closed would be given to the first file that is opened: never let that be a standard one.
    private static func requireStandardStreams() throws(MachineError) {
        var outputIsClosed = false
        do {
            while true {
                let null = try FileDescriptor.open("/dev/null", .readWrite)
                guard null.rawValue <= 2 else { break }
                if null.rawValue == 1 { outputIsClosed = true }
                _ = null.release()
            }
        } catch {
            throw MachineError("\(error). The host's /dev is incomplete; mount it and try again.")
        }
        if outputIsClosed {
            throw MachineError("Standard output is closed. Send it to a file, to a pipe or to /dev/null.")
        }
    }

    private var mode: ConsoleConfiguration.Mode {
        if !options.command.isEmpty { return .command }
        return options.kernel == nil && options.initrd == nil && options.image == nil ? .shell : .console
    }

    private var deadline: UInt64? {
        options.timeout.map { timeout in
            let (seconds, attoseconds) = timeout.components
            return startedAt &+ UInt64(clamping: seconds) &* 1_000_000_000
                &+ UInt64(clamping: attoseconds / 1_000_000_000)
        }
    }

    // MARK: The machine

    /// `newline` goes before the end of each line that is written while the machine runs: a raw terminal needs its own
    /// carriage return.
    private func machineConfiguration(
        _ mode: ConsoleConfiguration.Mode, newline: String
    ) throws(MachineError) -> MachineConfiguration {
        let guest = DefaultGuest()
        let kernelPath = options.kernel ?? imageBoot?.kernel
        if kernelPath == nil || mode == .command { try guest.requirePresent() }
        let kernel = try HostFile(path: kernelPath ?? guest.kernelPath, role: "kernel")
        return MachineConfiguration(
            memorySize: options.memorySize, kernel: kernel, modules: try modules(mode, guest),
            commandLine: commandLine(mode), serial: mode == .console ? .console : .defaultGuest,
            debugExit: debugExit, processor: options.cpu.model, devices: try devices { Message.note($0 + newline) },
            isTransitional: options.transitional,
            onDeviceTrouble: { Message.note($0 + newline) })
    }

    private var debugExit: DebugExitConfiguration? {
        options.device.lazy.compactMap { if case .debugExit(let exit) = $0 { exit } else { nil } }.first
    }

    /// The disks first: the guest's names for them follow their order.
    private func devices(_ log: @escaping @Sendable (String) -> Void) throws(MachineError) -> [DeviceConfiguration] {
        var devices: [DeviceConfiguration] = []
        let directory = options.snapshot ? DiskOption.temporaryDirectory : nil
        for disk in [options.image].compactMap(\.self) + options.disk {
            devices.append(try disk.open(throwawayIn: directory))
        }
        let cards: [NetworkConfiguration]
        do {
            cards = try NetworkOptions.cards(options.net, publish: options.publish, capture: options.capture)
        } catch {
            throw MachineError("\(error)")
        }
        devices += try NetworkOptions.open(cards, log: log)
        for share in options.share { devices.append(try share.open(of: options.share.count)) }
        if let socket = options.vsock { devices.append(try socket.open()) }
        if options.console == .virtio { devices.append(.console) }
        if !options.port.isEmpty { devices.append(.ports(try PortOption.open(options.port, log: log))) }
        if let balloon = options.balloon {
            devices.append(
                .balloon(BalloonControl(targetPages: balloon.targetPages, options: balloon.options)))
        }
        return devices + options.device.filter { $0 == .entropy }.map { _ in .entropy }
    }

    /// Each one, whatever becomes of the others; the first trouble is told.
    private static func closeDevices(_ configuration: MachineConfiguration) throws(MachineError) {
        for case .socket(let endpoint) in configuration.devices { endpoint.close() }
        for case .ports(let endpoints) in configuration.devices { for endpoint in endpoints { endpoint.close() } }
        var trouble: BlockError?
        for case .disk(let backend, _) in configuration.devices {
            do throws(BlockError) {
                try backend.close()
            } catch {
                trouble = trouble ?? error
            }
        }
        if let trouble {
            throw MachineError(
                "The last of a disk could not be written: \(trouble). Look at it with: martlet image check")
        }
    }

    private func modules(
        _ mode: ConsoleConfiguration.Mode, _ guest: DefaultGuest
    ) throws(MachineError) -> [BootModule] {
        if mode != .console {
            let initramfs = try HostFile(path: guest.initramfsPath, role: "initramfs")
            return [BootModule(file: JoinedFile(initramfs, followedBy: guestCommand(mode).archive))]
        }
        if let path = imageBoot?.initrd { return [BootModule(file: try HostFile(path: path, role: "initrd"))] }
        guard let initrd = options.initrd else { return [] }
        guard !initrd.isEmpty else {
            throw MachineError("--initrd has an empty file name. Leave the option out to boot without one.")
        }
        var result: [BootModule] = []
        for (path, arguments) in BootModule.split(initrd) {
            result.append(BootModule(file: try HostFile(path: path, role: "initrd"), arguments: arguments))
        }
        return result
    }

    private func guestCommand(_ mode: ConsoleConfiguration.Mode) -> GuestCommand {
        let size = TerminalSize(of: .standardOutput) ?? TerminalSize(of: .standardInput)
        let terminalType = mode == .shell ? environmentVariable("TERM") : nil
        return GuestCommand(
            arguments: options.command, terminalType: terminalType, columns: size?.columns ?? 80,
            rows: size?.rows ?? 24)
    }

    private func commandLine(_ mode: ConsoleConfiguration.Mode) -> String? {
        if let imageBoot { return imageBoot.commandLine }
        guard mode == .console, options.kernel != nil else {
            let own = DefaultGuest.kernelOptions(mitigations: options.cpu.model.wantsMitigations)
            let shares = options.share.map { "martlet.share=\($0.tag)" }
            let ports = options.port.map { "martlet.port=\($0.name)" }
            return ([own] + shares + ports + [options.append]).compactMap(\.self).joined(separator: " ")
        }
        return options.append
    }

    // MARK: What is said on the way

    private func observer(_ terminal: RawTerminal?) -> SessionObserver {
        // A raw terminal needs its own carriage return.
        let newline = terminal == nil ? "" : "\r"
        let verbose = options.verbose
        return SessionObserver(
            onPhase: { name, time in
                if verbose { Message.note("\(EndReport.text(of: time)) \(name)\(newline)") }
            },
            onHelp: {
                let keys =
                    "Ctrl-A x switches the machine off, Ctrl-A p has it stand still or go on, Ctrl-A h shows this, "
                    + "Ctrl-A Ctrl-A sends Ctrl-A."
                Message.line("\r\nmartlet: \(keys)\r")
            },
            onPause: { reason in
                let how = terminal == nil ? "kill -CONT \(getpid())" : "Ctrl-A p, or kill -CONT \(getpid()),"
                let because = reason.map { ": \($0)" } ?? ""
                Message.line("\(newline)martlet: the machine stands still\(because). \(how) lets it go on.\(newline)")
            },
            onResume: { Message.line("\(newline)martlet: the machine goes on.\(newline)") },
            onContinue: { terminal?.reenter() })
    }
}
