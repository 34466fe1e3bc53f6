internal import Foundation

/// A repository for apt with one package, which has one program: a directory for a web server.
struct PackageRepository {
    static let package = "martlet-probe"
    let directory: String

    init(_ scratch: Scratch) throws {
        directory = scratch.path("repository")
        let tree = scratch.path("package")
        let program = tree + "/usr/bin/" + Self.package
        for folder in [directory, tree + "/DEBIAN", tree + "/usr/bin"] {
            try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        }
        try "#!/bin/sh\necho probed $(id -un)\n".write(toFile: program, atomically: true, encoding: .utf8)
        for path in [program, tree + "/DEBIAN", tree + "/usr", tree + "/usr/bin", tree] {
            try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: path)
        }
        let control = """
            Package: \(Self.package)
            Version: 1.0
            Architecture: all
            Maintainer: Nobody <nobody@example.org>
            Description: proves that packages can be installed

            """
        try control.write(toFile: tree + "/DEBIAN/control", atomically: true, encoding: .utf8)
        let file = directory + "/\(Self.package).deb"
        let built = try RealGuest.run("dpkg-deb", "--root-owner-group", "--build", tree, file)
        guard built.status == 0 else { throw SerialConsole.Failure(description: "dpkg-deb: \(built.text)") }
        let digest = try RealGuest.run("sha256sum", file).text.prefix(64)
        let size = try Data(contentsOf: URL(filePath: file)).count
        try (control + "Filename: ./\(Self.package).deb\nSize: \(size)\nSHA256: \(digest)\n\n")
            .write(toFile: directory + "/Packages", atomically: true, encoding: .utf8)
    }
}
