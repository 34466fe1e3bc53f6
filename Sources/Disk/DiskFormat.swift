/// The formats of disk images.
public enum DiskFormat: String, CaseIterable, Sendable {
    case raw
    case qcow2
}
