internal import ArgumentParser
internal import Host
internal import Net
internal import Platform
internal import SoftKVM
internal import VMM

/// `martlet run`: one machine on this terminal.
struct RunCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run",
        abstract: "Boots a machine and connects it to this terminal.",
        usage: """
            martlet run [OPTION…]                          a shell in the default guest
            martlet run [OPTION…] -- COMMAND [ARG…]        one command in the default guest
            martlet run IMAGE [OPTION…]                    the system in a disk image
            martlet run --kernel FILE [--initrd FILE] [--append STRING] [OPTION…]
            martlet run --config FILE [OPTION…]            a machine that a file describes
            """,
        discussion: """
            EXAMPLES
              martlet run
              martlet run -- cat /proc/cpuinfo
              tar c src | martlet run -- sha256sum
              martlet run --memory 2G --timeout 5m -- sh -c 'free; exit 3'
              martlet run --kernel bzImage --initrd rootfs.cpio.gz --append 'console=ttyS0 root=/dev/ram0'
              martlet run --kernel test.elf --device isa-debug-exit
              martlet run --net user,egress=host -- wget -qO - http://host.martlet.internal:8000/
              martlet run --publish 8080:80 -- httpd -f -h /root
              truncate -s 1G disk.raw; martlet run --disk disk.raw -- sh -c 'echo hello >/dev/vda'
              martlet image build debian debian.qcow2 && martlet run debian.qcow2

            IMAGES
              IMAGE is the machine's first disk, written as for --disk. Its kernel, initial RAM disk and command line are
              those of its manifest (IMAGE.json, which `martlet image build` writes); --append adds to that command line.
              With --kernel the manifest is not needed. Its default memory is 1G.

            CONFIGURATION FILES
              --config FILE has options by the names that they have here, without dashes, in YAML, or in JSON if its
              name ends in .json:
                image: debian.qcow2
                memory: 2G
                snapshot: true
                disk: [data.raw, 'archive.qcow2,readonly']
              An option on the command line takes the place of the file's; a flag that the file sets stays set. Paths are
              relative to the current directory. `martlet config schema` prints the JSON schema.

            DISKS
              --disk FILE[,readonly][,format=raw|qcow2][,serial=NAME][,queues=N][,cache=MODE][,KEY=VALUE…]
              FILE          a raw image, a block device or a qcow2 image (martlet image makes them); it is locked while
                            the machine runs (several machines may share it if all have it readonly). A comma in its
                            name is written twice.
              format=       qcow2 where the name ends in .qcow2, else raw
              readonly      the guest cannot write to it
              serial=NAME   up to 20 characters, which the guest finds in /dev/disk/by-id and /sys/block/vda/serial
              queues=N      1 to 16, by default 1
              cache=MODE    writeback: safe after the guest's flushes (the default); writethrough: safe after each
                            write; none: past the host's page cache; unsafe: flushes do nothing, for disks that are
                            thrown away
              on-error=     what becomes of a request that this host cannot execute: report (the guest gets an I/O error,
                            the default), stop (the machine stands still until the trouble is mended and it is told to
                            go on, and the request is tried again), or enospc (stop where the host's disk is full)
              aio=          who waits for the host's disk: io_uring (the default where the host allows it), or threads
              bandwidth=, operations=   at most so many bytes and requests a second; burst=, operations-burst=
                            what may come at once after a pause

            NETWORKS
              --net user[,egress=POLICY][,ipv6=on][,KEY=VALUE…]   no root, nothing to set up on the host
              --net tap,name=tap0 | tap,fd=N [,vhost=auto|on|off]   a tap device that somebody made for you
              --net socket,path=/run/a,peer=/run/b                a cable to another machine (there: a and b exchanged)
              --net none                                          a card whose cable is not plugged in
              Without any of these options the machine has no card, and nothing in it can reach a network. --publish and
              --capture alone add --net user.
              egress=       of user: what the guest may reach, all (the default), host (this host, as 10.0.2.2 or
                            host.martlet.internal), none, or a list of host, dns (names) and ADDRESS/BITS:PORT[/tcp|/udp];
                            what is refused is answered at once, and told here
              mac=, mtu=    the card's address (else a random one) and largest packet (default: 1500)
              queues=N      1 to 16 pairs of queues, by default 1
              bandwidth=, operations=   at most so many bytes and frames a second and direction; burst=,
                            operations-burst= what may come at once after a pause
              vhost=        of tap: whether the host's kernel moves the frames itself (vhost-net): auto (the default) with
                            --accel kvm where /dev/vhost-net can be opened, on or an error, off. It needs one pair of
                            queues, no limits and no capture.
              name=, capture=   of the network in messages, and a file for its frames
              --publish [ADDRESS:]HOSTPORT:GUESTPORT[/udp]   the host's port, on 127.0.0.1 unless an ADDRESS is named,
                            leads to the guest (user network)
              --capture FILE   all frames of the card, for wireshark or tcpdump -r (several cards: capture= of each)
              The default guest asks for an address when it starts.

            SHARED FOLDERS
              --share FOLDER:NAME[:ro]
              FOLDER        a folder of this host; a colon in its name needs no quoting, since NAME has none
              NAME          by which the guest mounts it: mount -t virtiofs NAME /mnt. The default guest has it at
                            /mnt/NAME already.
              ro            the guest cannot change anything in it
              The guest reaches nothing outside the folder; symbolic links lead where they lead in the guest. Unless you
              are root, all that the guest makes is yours, and your files are root's in the guest.

            SOCKETS
              --vsock CID,PATH
              CID           the guest's number, from 3 on, as vsock(7) has it
              PATH          a Unix socket that is made: who connects to it, writes 'CONNECT PORT' and a newline and reads
                            'OK N' and a newline, speaks to port PORT of the guest. A guest that connects to port P of
                            the host (CID 2) reaches the Unix socket PATH_P.

            CONSOLES AND PORTS
              --console virtio   the terminal is the guest's hvc0, and changes its size there when it does here. The first
                            serial port is shown on it too, and gets what is typed until the guest has a driver for hvc0.
              --port NAME=unix:PATH   the guest's /dev/virtio-ports/NAME is a Unix socket that is made, for one client at
                            a time: the place for a guest agent
              --port NAME=file:PATH   what the guest writes to it is added to a file

            MEMORY
              --balloon KEY[,KEY…]
              target=SIZE   how much of its memory the guest is asked to give back, such as 256M
              deflate-on-oom   the guest may take some of it again before it kills a process for want of memory
              free-page-reporting   memory that the guest does not use goes back to the host until it does
              What became of it is told at the end with --verbose.

            KEYS (when standard input is a terminal)
              Ctrl-A x      switch the machine off and leave
              Ctrl-A p      the machine stands still, and goes on with the next Ctrl-A p
              Ctrl-A h      show these keys
              Ctrl-A Ctrl-A send one Ctrl-A to the guest

            TRACES
              --trace faults:vector=14,user        page faults of the guest's programs
              --trace exits:port=0x3f8-0x3ff       what the guest does to its first serial port
              --trace blocks:rip=0x1000+0x200      code there, as it is decoded and translated
              --trace blocks:entries,kernel        also each time that it is entered (it is interpreted then)
              Filters: user, kernel, rip=, vector= of faults, port= of exits, address= of page faults and of
              memory-mapped exits. Several ranges of one add up; of several filters all must hold.

            EXIT STATUS
              0        the guest switched itself off, or you left with Ctrl-A x
              N        with a COMMAND: its own status (126 cannot be executed, 127 not found, 128+N killed by signal N)
              N        with isa-debug-exit: (value << 1) | 1
              64       the command line is wrong
              120      the guest's kernel panicked
              121      triple fault: the guest's processor shut down
              122      the engine could not go on (with --accel kvm: try --accel soft)
              123      with --engine lockstep: the translator and the interpreter differ
              124      --timeout was reached
              125      Martlet could not start or continue: the line on standard error says why
              128+N    ended by signal N
            """)

    @Argument(
        help: ArgumentHelp(
            "A disk image to boot, as its manifest says (see IMAGES).", valueName: "image"),
        transform: DiskOption.parse)
    var image: DiskOption?

    @Option(help: ArgumentHelp("Read options from a file (see CONFIGURATION FILES).", valueName: "file"))
    var config: String?

    @Option(help: "A Linux bzImage or ELF kernel, or a multiboot image, instead of the default guest's kernel.")
    var kernel: String?

    @Option(help: "The initial RAM disk; for a multiboot image its modules: 'FILE ARGS,FILE ARGS'.")
    var initrd: String?

    @Option(
        help: ArgumentHelp(
            "The kernel's command line (default for Linux: console=ttyS0 panic=-1); the default guest's own comes before it.",
            valueName: "string"))
    var append: String?

    @Option(
        help: ArgumentHelp(
            "The guest's memory, such as 512M or 2G (default: 512M, with an IMAGE 1G).", valueName: "size"),
        transform: MemorySize.parse)
    var memory: MemorySize?

    @Option(
        help: ArgumentHelp(
            "The engine: kvm is /dev/kvm, soft needs no hardware support, auto (the default) takes what works here.",
            valueName: "auto|kvm|soft"),
        transform: AcceleratorOption.parse)
    var accel: Accelerator = .auto

    @Option(
        help: ArgumentHelp(
            "How the software engine executes: translator (the default); interpreter, slower and simpler; exact, a translator whose status flags are right in every fault's frame, for debuggers in the guest; or lockstep, translator and interpreter at once, which stops where they differ.",
            valueName: "interpreter|translator|exact|lockstep"),
        transform: SoftwareEngineOption.parse)
    var engine: SoftwareEngine = .translator

    @Option(
        help: ArgumentHelp(
            "The guest's processor: default, with features added or hidden by Linux's names for them, such as default,-avx512f; +mitigations lets the guest protect itself against speculation; help lists all.",
            valueName: "model[,+feature,-feature]"),
        transform: ProcessorOption.parse)
    var cpu: ProcessorOption = .model(CPUModel())

    @Option(
        help: ArgumentHelp("End the machine after this time, such as 30s or 5m.", valueName: "duration"),
        transform: TimeSpan.parse)
    var timeout: Duration?

    @Flag(help: "End when the guest restarts, instead of starting it again.")
    var noReboot = false

    @Option(
        help: ArgumentHelp(
            "Add a disk (see DISKS); again for more: /dev/vda, /dev/vdb, … of the guest in this order.",
            valueName: "file[,key=value]"),
        transform: DiskOption.parse)
    var disk: [DiskOption] = []

    @Flag(help: "Throw away what the machine writes to its disks; the images are only read.")
    var snapshot = false

    @Option(
        help: ArgumentHelp(
            "Add a network card: user, tap, socket or none (see NETWORKS; default: no card); again for more.",
            valueName: "kind[,key=value]"),
        transform: NetworkOptions.parse)
    var net: [NetworkConfiguration] = []

    @Option(
        help: ArgumentHelp(
            "Lead a TCP or UDP port of the host to the guest, such as 8080:80 or 5353:53/udp (see NETWORKS); again for more.",
            valueName: "host:guest[/udp]"),
        transform: NetworkOptions.parsePort)
    var publish: [PublishedPort] = []

    @Option(help: ArgumentHelp("Write all frames of the network card into a pcapng file.", valueName: "file"))
    var capture: String?

    @Option(
        help: ArgumentHelp(
            "Share a folder of the host with the guest (see SHARED FOLDERS); again for more.",
            valueName: "folder:name[:ro]"),
        transform: ShareOption.parse)
    var share: [ShareOption] = []

    @Option(
        help: ArgumentHelp(
            "Connect the guest's stream sockets with Unix sockets of the host (see SOCKETS).", valueName: "cid,path"),
        transform: SocketOption.parse)
    var vsock: SocketOption?

    @Option(
        help: ArgumentHelp(
            "What the terminal is in the guest: ttyS0 (serial, the default) or hvc0 (virtio); see CONSOLES AND PORTS.",
            valueName: "serial|virtio"),
        transform: ConsoleOption.parse)
    var console: ConsoleOption = .serial

    @Option(
        help: ArgumentHelp(
            "Connect a named port of the guest with a Unix socket or a file (see CONSOLES AND PORTS); again for more.",
            valueName: "name=unix:path"),
        transform: PortOption.parse)
    var port: [PortOption] = []

    @Option(
        help: ArgumentHelp(
            "Give memory of the guest back to the host: target=SIZE, free-page-reporting, deflate-on-oom (see MEMORY).",
            valueName: "key[,key]"),
        transform: BalloonOption.parse)
    var balloon: BalloonOption?

    @Flag(
        help: "Disks and network cards work with drivers from before Virtio 1.0 too (Linux before 4.0, old Windows).")
    var transitional = false

    @Option(
        help: ArgumentHelp(
            "Add a device: isa-debug-exit[,iobase=0xf4,iosize=4], or virtio-rng, the host's random numbers; again for more.",
            valueName: "device"),
        transform: DeviceOption.parse)
    var device: [DeviceOption] = []

    @Option(
        help: ArgumentHelp(
            "Sample the guest 997 times a second and write where its time went, as folded stacks; also /tmp/perf-PID.map.",
            valueName: "file"))
    var profile: String?

    @Option(
        help: ArgumentHelp(
            "Names for the profile: a System.map, the guest's /proc/kallsyms or an ELF file; again for more.",
            valueName: "file[@address]"),
        transform: SymbolsOption.parse)
    var symbols: [SymbolFile] = []

    @Option(
        help: ArgumentHelp(
            "Write a line for each of these events: blocks, exits, faults (see TRACES); again for more.",
            valueName: "events[:filters]"),
        transform: TraceOption.parse)
    var trace: [TraceRequest] = []

    @Option(help: ArgumentHelp("Where the trace goes instead of standard error.", valueName: "file"))
    var traceFile: String?

    static let defaultTraceLimit: UInt64 = 100_000

    @Option(
        help: ArgumentHelp("The trace ends after so many lines (default: 100000).", valueName: "n"),
        transform: TraceLimitOption.parse)
    var traceLimit: UInt64?

    @Flag(name: .shortAndLong, help: "Say which engine runs and why, and how long each phase took.")
    var verbose = false

    @Argument(
        parsing: .postTerminator,
        help: "After --: what to run in the default guest, with this process's standard streams.")
    var command: [String] = []

    /// What the machine gets.
    var memorySize: UInt64 { memory?.bytes ?? (image == nil ? 512 << 20 : 1 << 30) }

    func validate() throws {
        if !command.isEmpty, let image {
            throw ValidationError(
                "A COMMAND runs in the default guest, and \(image.path) is a system of its own: leave out one of them")
        }
        if !command.isEmpty, initrd != nil {
            throw ValidationError("A COMMAND runs in the default guest's initramfs: leave out --initrd or the COMMAND")
        }
        if command.contains(where: { $0.contains("\0") }) {
            throw ValidationError("The COMMAND has a zero byte in an argument")
        }
        if let name = Dictionary(grouping: share, by: \.tag).first(where: { $0.value.count > 1 })?.key {
            throw ValidationError("Two shared folders are called \(name): give each a name of its own")
        }
        if !symbols.isEmpty, profile == nil { throw ValidationError("--symbols names what --profile finds: give both") }
        _ = try NetworkOptions.cards(net, publish: publish, capture: capture)
        try PortOption.check(port)
        if let balloon, UInt64(balloon.targetPages) << 12 >= memorySize {
            throw ValidationError(
                "The balloon's target is all of the guest's memory (\(memorySize >> 20) MiB): ask for less")
        }
        if trace.isEmpty, traceFile != nil { throw ValidationError("--trace-file is for --trace: give both") }
        if trace.isEmpty, traceLimit != nil { throw ValidationError("--trace-limit is for --trace: give both") }
    }

    func run() throws {
        let startedAt = HostClock.monotonicNanoseconds
        let status: ExitStatus
        do throws(MachineError) {
            if case .help = cpu { return try listProcessorFeatures() }
            status = try RunSession(self, startedAt: startedAt).run()
        } catch {
            Message.error(error.description)
            throw ExitStatus.martletFailed
        }
        if status != .success { throw status }
    }

    private func listProcessorFeatures() throws(MachineError) {
        let text = try EngineChoice(accel, software: engine).describeProcessor()
        do {
            try BorrowedDescriptor.standardOutput.write(Array(text.utf8))
        } catch {
            throw MachineError("Cannot write to standard output: \(error.reason).")
        }
    }
}
