internal import Disk
internal import Host

/// Builds one Debian image.
struct DebianBuild {
    let recipe: DebianRecipe
    let progress: BuildProgress
    private var options: BuildDebianCommand { recipe.options }

    init(_ recipe: DebianRecipe, progress: BuildProgress) {
        self.recipe = recipe
        self.progress = progress
    }

    func run() throws(DiskError) {
        progress.enter(.start)
        let tools = try BuildTools()
        let inputs = try BuildInputs(options)
        try requireReplaceable()
        let work = try BuildWorkspace(besides: options.output)
        defer { work.remove() }
        try prepare(work, inputs)
        let output = try install(tools, work)
        progress.enter(.convert)
        try convert(work)
        try publish(work, kernelRelease: output.kernelRelease)
    }

    /// An image that a machine uses is not replaced; this is said before the work.
    private func requireReplaceable() throws(DiskError) {
        guard HostPath.exists(options.output) else { return }
        let former = try FileStorage(path: options.output, isWritable: true)
        defer { former.close() }
        guard !former.isBlockDevice else {
            throw DiskError(
                .unsupported,
                "\(options.output) is a block device. Build a file, and copy it with: martlet image convert --to raw")
        }
    }

    private func prepare(_ work: BuildWorkspace, _ inputs: BuildInputs) throws(DiskError) {
        try work.write(inputs.keys, to: "keys")
        try work.write(inputs.password, to: "password")
        try work.write(inputs.userData, to: "user-data")
        try DiskImage.createRaw(work.path("disk"), size: options.size.bytes)
        for name in BuildWorkspace.outputs { try work.makeWritable(name) }
    }

    // MARK: The system

    private func install(_ tools: BuildTools, _ work: BuildWorkspace) throws(DiskError) -> BuildOutput {
        let sources = try hostSources(tools)
        let directory = try BuildWorkspace.host { () throws(HostError) in try HostPath.openDirectory(work.files) }
        var run = command(tools, sources)
        run.directory = directory.borrowed
        var output = BuildOutput()
        let ending = try run.run(progress: progress) { bytes in
            if output.take(bytes, whole: { progress.show($0) }) { progress.enter(output.phase) }
        } tick: {
            progress.update()
        }
        guard ending == .exited(0) else { throw failure(output, tools) }
        for name in BuildWorkspace.outputs { try work.finish(name) }
        return output
    }

    private func hostSources(_ tools: BuildTools) throws(DiskError) -> HostPackageSources {
        let environment = tools.environment([])
        guard let apt = HostPath.findProgram("apt-get", in: tools.searchPath),
            let config = HostPath.findProgram("apt-config", in: tools.searchPath)
        else { return HostPackageSources() }
        let targets = try ToolRun.text(
            of: apt, ["indextargets", "--format", HostPackageSources.targetFormat, "Created-By: Packages"], environment,
            progress: progress)
        let dump = try ToolRun.text(of: config, ["dump"], environment, progress: progress)
        return HostPackageSources(targets: targets ?? "", configuration: dump ?? "")
    }

    private func command(_ tools: BuildTools, _ host: HostPackageSources) -> ToolRun {
        let packages = recipe.packages.joined(separator: ",")
        let sources = recipe.buildSources(host)
        switch tools.bootstrap {
        case .mmdebstrap(let program):
            let aptOptions = host.options.map { "--aptopt=\($0)" }
            return ToolRun(
                program: program,
                arguments: [
                    "--mode=\(tools.isRoot ? "root" : "unshare")", "--variant=minbase", "--format=null",
                    // The tree is thrown away: what a power cut would do to it is no matter.
                    "--dpkgopt=force-unsafe-io", "--skip=cleanup/apt", "--include=\(packages)",
                    "--customize-hook=\(DebianInstallScript.text)",
                ] + aptOptions + [options.suite, "/dev/null"] + sources,
                environment: tools.environment(recipe.environment))
        case .debootstrap(let program):
            // Its lines have one more word in front of the URI where there are keys.
            let mirror = sources[0].split(separator: " ").map(String.init).first { DebianNames.isMirror($0) }
            return ToolRun(
                program: HostPath.findProgram("unshare", in: tools.searchPath) ?? "/usr/bin/unshare",
                arguments: [
                    "--mount", "/bin/sh", "-c", DebianInstallScript.debootstrapWrapper, "sh", program, packages,
                    options.suite, mirror ?? "", DebianInstallScript.text,
                ],
                environment: tools.environment(recipe.environment))
        }
    }

    private func failure(_ output: BuildOutput, _ tools: BuildTools) -> DiskError {
        let temporary = environmentVariable("TMPDIR").flatMap { $0.isEmpty ? nil : $0 } ?? "/tmp"
        let complaint = output.complaint
        if output.isDiskFull {
            let places = [DirectoryName.of(options.output), temporary].map { path in
                "\(((try? HostPath.freeSpace(of: path)) ?? 0) >> 20) MiB free in \(path)"
            }
            return DiskError(
                .host(28),
                "\(output.phase.title) failed, because a disk is full: \(complaint) "
                    + "(\(places.joined(separator: ", "))). "
                    + "A build needs about 1 GB in $TMPDIR or /tmp, and 1 GB beside the image; --size may also be too small"
            )
        }
        return DiskError(
            .invalid,
            "\(output.phase.title) failed: \(complaint). Check the network, the names of suite and packages, and "
                + "/etc/apt; --verbose shows everything")
    }

    // MARK: The image

    private func convert(_ work: BuildWorkspace) throws(DiskError) {
        guard options.format == .qcow2 else { return }
        let source = try DiskImage.open(work.path("disk"), .raw, DiskImage.Options())
        try DiskImage.createQCOW2(work.path("image"), size: source.size, QCOW2Options())
        let target = try DiskImage.open(work.path("image"), .qcow2, DiskImage.Options(isWritable: true))
        try Conversion().run(from: source, to: target) { done, total in
            progress.update(done: total == 0 ? 1 : Double(done) / Double(total))
            return !progress.isStopped()
        }
        try target.close()
        try source.close()
    }

    /// The manifest last: an image with one is whole.
    private func publish(_ work: BuildWorkspace, kernelRelease: String?) throws(DiskError) {
        let output = options.output
        let base = output.split(separator: "/").last.map(String.init) ?? output
        let manifest = ImageManifest(
            system: "Debian \(options.suite)", kernelRelease: kernelRelease, kernel: "\(base).kernel",
            initrd: "\(base).initrd", append: recipe.kernelOptions)
        try work.write(Array((manifest.json.text() + "\n").utf8), to: "manifest")
        let names = [
            ("kernel", "\(output).kernel"), ("initrd", "\(output).initrd"),
            (options.format == .qcow2 ? "image" : "disk", output), ("manifest", ImageManifest.path(of: output)),
        ]
        guard !progress.isStopped() else { throw DiskError(.cancelled, "Stopped") }
        var done: [String] = []
        do throws(DiskError) {
            for (name, path) in names {
                try BuildWorkspace.host { () throws(HostError) in try HostPath.rename(work.path(name), to: path) }
                done.append(path)
            }
        } catch {
            for path in done { try? HostPath.remove(path) }
            throw error
        }
    }
}

enum DirectoryName {
    /// The directory that a path is in.
    static func of(_ path: String) -> String {
        guard let slash = path.lastIndex(of: "/") else { return "." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }
}
