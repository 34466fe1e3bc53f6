/// struct virtio_fs_config (Virtio 1.2 §5.11.4) by offset.
enum FileSystemConfiguration {
    static let size = 40
    /// Padded with NULs; without one where it has this many bytes.
    static let tagSize = 36
    static let requestQueueCount = 36
}
