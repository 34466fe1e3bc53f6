internal import Disk
internal import VMM

/// How an image that was given as what to run is booted: as its manifest says, or with a kernel of one's own.
struct ImageBoot {
    var kernel: String
    var initrd: String?
    var commandLine: String

    /// Nil where there is no image to boot, or the command line has the kernel.
    init?(_ options: RunCommand) throws(MachineError) {
        guard let image = options.image, options.kernel == nil else { return nil }
        let manifest: ImageManifest
        do throws(DiskError) {
            manifest = try ImageManifest(of: image.path)
        } catch {
            throw MachineError(error.description + (error.description.hasSuffix(".") ? "" : "."))
        }
        kernel = DiskImage.resolve(manifest.kernel, besides: image.path)
        initrd = options.initrd == nil ? manifest.initrd.map { DiskImage.resolve($0, besides: image.path) } : nil
        commandLine = [manifest.append, options.append ?? ""].filter { !$0.isEmpty }.joined(separator: " ")
    }
}
