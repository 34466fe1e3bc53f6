internal import Disk
internal import Host

/// One program of a build, from its start to its end.
struct ToolRun {
    var program: String
    var arguments: [String]
    var environment: [String]
    /// The program's descriptor 3.
    var directory: BorrowedDescriptor?

    /// How long a program has to clean up after itself once it was told to end.
    private static let patience: UInt64 = 30_000_000_000

    /// Runs it with an empty standard input. `output` gets what it prints; `tick` is called a few times a second. When
    /// a signal asks for the end, the program is ended first.
    func run(
        progress: BuildProgress, output: ([UInt8]) -> Void, tick: () -> Void = {}
    ) throws(DiskError) -> ChildProcess.Ending {
        do throws(HostError) {
            let null = try FileDescriptor.open("/dev/null")
            let pipe = try Pipe()
            let child = try ChildProcess(
                program: program, arguments: arguments, environment: environment, input: null.borrowed,
                output: pipe.writing.borrowed, extra: directory)
            let reading = pipe.keepReading()
            try reading.borrowed.setNonBlocking(true)
            let ending = try wait(for: child, reading.borrowed, progress, output, tick)
            guard !progress.isStopped() else { throw HostError("Stopped", errorNumber: Self.cancelled) }
            return ending
        } catch {
            if error.errorNumber == Self.cancelled { throw DiskError(.cancelled, "Stopped") }
            throw DiskError(.host(error.errorNumber), "\(error.description)")
        }
    }

    /// ECANCELED.
    private static let cancelled: Int32 = 125

    private func wait(
        for child: ChildProcess, _ reading: BorrowedDescriptor, _ progress: BuildProgress, _ output: ([UInt8]) -> Void,
        _ tick: () -> Void
    ) throws(HostError) -> ChildProcess.Ending {
        var toldAt: UInt64?
        while true {
            let ready = try poll(for: child, reading, progress)
            drain(reading, output)
            tick()
            if ready.contains(where: { $0.descriptor == child.descriptor }), let ending = try child.ending() {
                drain(reading, output)
                // What it left running would go on writing.
                child.signalGroup(.terminate)
                return ending
            }
            let now = HostClock.monotonicNanoseconds
            if toldAt == nil, progress.isStopped() {
                toldAt = now
                child.signalGroup(.terminate)
            } else if let since = toldAt, now &- since > Self.patience {
                child.signalGroup(.kill)
            }
        }
    }

    private func poll(
        for child: ChildProcess, _ reading: BorrowedDescriptor, _ progress: BuildProgress
    ) throws(HostError) -> [DescriptorPoll.Ready] {
        var poll = DescriptorPoll()
        poll.set(child.descriptor, .readable)
        poll.set(reading, .readable)
        if let signals = progress.descriptor { poll.set(signals, .readable) }
        let ready = try poll.wait(timeoutNanoseconds: 250_000_000)
        // A pipe without writers is always ready.
        if ready.contains(where: { $0.descriptor == reading && $0.isHungUp && !$0.isReadable }) {
            HostClock.sleep(nanoseconds: 10_000_000)
        }
        return ready
    }

    private func drain(_ reading: BorrowedDescriptor, _ output: ([UInt8]) -> Void) {
        // EAGAIN: nothing more for now.
        while let bytes = try? reading.read(upTo: 1 << 16), !bytes.isEmpty { output(bytes) }
    }

    /// What a program prints, at most a megabyte of it; nil where it fails.
    static func text(
        of program: String, _ arguments: [String], _ environment: [String], progress: BuildProgress
    ) throws(DiskError) -> String? {
        var bytes: [UInt8] = []
        let run = ToolRun(program: program, arguments: arguments, environment: environment)
        let ending = try run.run(progress: progress, output: { if bytes.count < 1 << 20 { bytes += $0 } })
        return ending == .exited(0) ? String(decoding: bytes, as: UTF8.self) : nil
    }
}
