internal import ArgumentParser
internal import Disk
internal import Host

/// `martlet image`: disk images, without a machine.
struct ImageCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "image",
        abstract: "Makes, converts, checks and changes disk images.",
        discussion: """
            EXAMPLES
              martlet image create --format qcow2 disk.qcow2 20G
              martlet image create --format qcow2 --backing base.qcow2 --backing-format qcow2 overlay.qcow2
              martlet image info --backing-chain overlay.qcow2
              martlet image convert --from qcow2 --to raw disk.qcow2 disk.raw
              martlet image convert --to qcow2 --compress zstd disk.qcow2 small.qcow2
              martlet image resize disk.qcow2 +10G
              martlet image check --repair all disk.qcow2
              martlet image snapshot create disk.qcow2 before-upgrade
              martlet image build debian debian.qcow2
              martlet image bench --write --size 64K --count 8000 new.qcow2

            FORMATS
              raw and qcow2. An image with a qcow2 header needs no word about its format, unless it refers to other
              files. A file without one is never taken for raw unless you say so: its guest may have written anything.

            EXIT STATUS
              0    done; for check: nothing found
              2    check: the image is corrupt
              3    check: clusters are lost to the image, nothing else
              64   the command line is wrong
              125  it failed; the message says why
              128+N  ended by signal N; an image that was being made is removed
            """,
        subcommands: [
            CreateCommand.self, InfoCommand.self, ConvertCommand.self, ResizeCommand.self, CheckCommand.self,
            SnapshotCommand.self, CommitCommand.self, RebaseCommand.self, BuildCommand.self, BenchCommand.self,
        ])
}

/// Runs what a verb does, and tells its trouble in one line.
func reportingDiskErrors(_ body: () throws(DiskError) -> Void) throws {
    do throws(DiskError) {
        try body()
    } catch {
        Message.error(error.description + (error.description.hasSuffix(".") ? "" : "."))
        throw ExitStatus.martletFailed
    }
}

/// Text for standard output.
func printOut(_ text: String) throws(DiskError) {
    do {
        try BorrowedDescriptor.standardOutput.write(Array(text.utf8))
    } catch {
        throw DiskError(.host(error.errorNumber), "Cannot write to standard output: \(error.reason)")
    }
}
