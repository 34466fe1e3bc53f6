internal import Disk
internal import Host

/// What belongs to a disk image and is not in it: how to boot it. A JSON file beside the image, with the image's name
/// and `.json`; the paths in it are relative to its directory.
struct ImageManifest: Equatable {
    static let version: UInt64 = 1

    var system: String?
    var kernelRelease: String?
    var kernel: String
    var initrd: String?
    /// The kernel's command line.
    var append: String

    static func path(of image: String) -> String { image + ".json" }

    var json: JSONText {
        var members: [(String, JSONText)] = [("martlet-image", .number(Self.version))]
        if let system { members.append(("system", .string(system))) }
        if let kernelRelease { members.append(("kernel-release", .string(kernelRelease))) }
        members.append(("kernel", .string(kernel)))
        if let initrd { members.append(("initrd", .string(initrd))) }
        members.append(("append", .string(append)))
        return .object(members)
    }

    /// The manifest of an image; a `DiskError` says what is wrong with it, and what to do where there is none.
    init(of image: String) throws(DiskError) {
        let path = Self.path(of: image)
        guard HostPath.exists(path) else {
            guard HostPath.exists(image) else {
                throw DiskError(
                    .invalid,
                    "There is no file \(image). Build an image with: martlet image build debian \(image) "
                        + "(a command for the default guest goes after --)")
            }
            throw DiskError(
                .invalid,
                "\(image) has no manifest \(path) that says how to boot it. Give its kernel: --kernel FILE "
                    + "--initrd FILE --append 'root=…', or build an image with: martlet image build debian")
        }
        let bytes: [UInt8]
        do throws(HostError) {
            bytes = try RandomAccessFile(path: path).readAll(limit: 1 << 20)
        } catch {
            throw DiskError(.host(error.errorNumber), "Cannot read the image's manifest \(path): \(error.reason)")
        }
        try self.init(bytes, path: path)
    }

    init(_ bytes: [UInt8], path: String) throws(DiskError) {
        func invalid(_ text: String) -> DiskError {
            DiskError(.invalid, "The image's manifest \(path) \(text). Build the image again, or give --kernel")
        }
        let node: ConfigurationNode
        do throws(ConfigurationError) {
            node = try JSONReader.read(bytes)
        } catch {
            throw invalid("is not JSON: line \(error.line): \(error.description)")
        }
        guard case .mapping(let members) = node.value else { throw invalid("is no JSON object") }
        func string(_ name: String) throws(DiskError) -> String? {
            guard let value = members.last(where: { $0.name == name })?.value else { return nil }
            guard case .string(let text) = value.value, !text.contains("\0") else {
                throw invalid("has a \(name) that is no string")
            }
            return text
        }
        guard let said = members.last(where: { $0.name == "martlet-image" })?.value.value,
            case .number(let text) = said, let version = UInt64(text)
        else { throw invalid("does not say its version, \"martlet-image\"") }
        guard version <= Self.version else {
            throw invalid("has version \(version), and this Martlet knows \(Self.version)")
        }
        guard let kernel = try string("kernel"), !kernel.isEmpty else { throw invalid("names no kernel") }
        self.kernel = kernel
        initrd = try string("initrd")
        append = try string("append") ?? ""
        system = try string("system")
        kernelRelease = try string("kernel-release")
    }

    init(system: String, kernelRelease: String?, kernel: String, initrd: String, append: String) {
        self.system = system
        self.kernelRelease = kernelRelease
        self.kernel = kernel
        self.initrd = initrd
        self.append = append
    }
}
