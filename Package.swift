// swift-tools-version: 6.2
import Glibc
import PackageDescription

/// Every Swift target: Swift 6 mode, warnings are errors, imports say how far they reach.
let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .treatAllWarnings(as: .error),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
]

/// Targets outside the unsafe rooms (ARCHITECTURE.md): each unsafe use would have to be spelled.
let safe: [SwiftSetting] = strict + [.strictMemorySafety()]

/// The engine: exclusivity is proved by ownership (one vCPU thread owns its state), see docs/decisions/0001.
let engine: [SwiftSetting] = strict + [.unsafeFlags(["-enforce-exclusivity=unchecked"])]

/// The second opinion on the decoder (Debian: libzydis-dev); without it that test says that it is skipped.
let hasZydis = access("/usr/include/Zydis/Zydis.h", F_OK) == 0

let package = Package(
    name: "martlet",
    products: [
        .executable(name: "martlet", targets: ["martlet"])
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2")
    ],
    targets: [
        // Host floor
        .target(name: "CHost", cSettings: [.unsafeFlags(["-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing"])]),
        // liburing (Debian: liburing-dev), inside the binary.
        .target(
            name: "CURing", cSettings: [.unsafeFlags(["-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing"])],
            linkerSettings: [.unsafeFlags(["-Xlinker", "-l:liburing.a"])]),
        .target(name: "Host", dependencies: ["CHost", "CURing"], swiftSettings: strict),
        .target(name: "GuestMemory", dependencies: ["CHost", "Host", "X86"], swiftSettings: strict),

        // zlib and zstd (Debian: zlib1g-dev, libzstd-dev), inside the binary.
        .target(
            name: "CCompression", cSettings: [.unsafeFlags(["-Wall", "-Wextra", "-Werror"])],
            linkerSettings: [.unsafeFlags(["-Xlinker", "-l:libzstd.a", "-Xlinker", "-l:libz.a"])]),
        // libyaml (Debian: libyaml-dev), inside the binary.
        .target(
            name: "CYAML", cSettings: [.unsafeFlags(["-Wall", "-Wextra", "-Werror"])],
            linkerSettings: [.unsafeFlags(["-Xlinker", "-l:libyaml.a"])]),
        // libslirp (Debian: libslirp-dev).
        .systemLibrary(name: "CSlirp"),

        // Engine floor
        .target(name: "X86", swiftSettings: safe),
        .target(name: "Hypervisor", dependencies: ["CHost", "GuestMemory", "X86"], swiftSettings: strict),
        .target(name: "CPU", dependencies: ["CHost", "GuestMemory", "X86"], swiftSettings: engine),
        .target(
            name: "SoftKVM", dependencies: ["CHost", "Host", "CPU", "GuestMemory", "Hypervisor", "X86"],
            swiftSettings: strict),
        .target(
            name: "KernelKVM", dependencies: ["CHost", "Host", "GuestMemory", "Hypervisor", "X86"],
            swiftSettings: strict),

        // Device floor
        .target(name: "DeviceModel", dependencies: ["GuestMemory", "Host"], swiftSettings: safe),
        .target(name: "Disk", dependencies: ["CCompression", "Host"], swiftSettings: safe),
        .target(name: "Platform", dependencies: ["DeviceModel", "GuestMemory", "Host", "X86"], swiftSettings: safe),

        .target(name: "FileShare", dependencies: ["CHost", "Host"], swiftSettings: safe),
        .target(
            name: "Virtio", dependencies: ["DeviceModel", "Disk", "FileShare", "GuestMemory", "Host", "Net", "X86"],
            swiftSettings: safe),
        .target(name: "Net", dependencies: ["CHost", "CSlirp", "Host"], swiftSettings: safe),

        // Machine floor
        .target(
            name: "VMM",
            dependencies: [
                "CHost", "DeviceModel", "FileShare", "GuestMemory", "Host", "Hypervisor", "KernelKVM", "Net",
                "Platform",
                "SoftKVM", "Virtio", "X86",
            ],
            swiftSettings: safe),

        // Interface floor
        .target(
            name: "CommandLineTool",
            dependencies: [
                "CYAML", "Disk", "FileShare", "Host", "KernelKVM", "Net", "Platform", "SoftKVM", "VMM", "Virtio", "X86",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: strict),
        .executableTarget(name: "martlet", dependencies: ["CommandLineTool"], swiftSettings: strict),
        .testTarget(
            name: "SoftKVMTests", dependencies: ["CHost", "Fuzzing", "Host", "Hypervisor", "SoftKVM", "X86"],
            swiftSettings: strict),
        .testTarget(
            name: "GuestMemoryTests", dependencies: ["GuestMemory", "Host", "X86"], swiftSettings: strict),
        .testTarget(name: "HostTests", dependencies: ["Host", "HostProcess"], swiftSettings: strict),
        .testTarget(
            name: "KernelKVMTests", dependencies: ["CHost", "GuestMemory", "Host", "Hypervisor", "KernelKVM", "X86"],
            swiftSettings: strict),
        .testTarget(
            name: "GuestTests",
            dependencies: ["CHost", "GuestMemory", "Host", "Hypervisor", "KernelKVM", "SoftKVM", "X86"],
            exclude: ["Expected"], swiftSettings: strict),
        // Runs code on the host's own processor, for comparison.
        .target(
            name: "CTestHost", path: "Tests/Support/CTestHost",
            cSettings: [.unsafeFlags(["-Wall", "-Wextra", "-Werror"])],
            linkerSettings: hasZydis ? [.linkedLibrary("Zydis")] : []),
        // Seeds and time of the fuzz tests.
        .target(name: "Fuzzing", path: "Tests/Support/Fuzzing", swiftSettings: strict),
        // Programs of the host as children of tests.
        .target(
            name: "HostProcess", dependencies: ["Host"], path: "Tests/Support/HostProcess", swiftSettings: strict),
        // Sockets on the host's loopback, and namespaces to use them in.
        .target(
            name: "HostNetwork", dependencies: ["Host", "HostProcess"], path: "Tests/Support/HostNetwork",
            swiftSettings: strict),
        .testTarget(
            name: "CPUTests", dependencies: ["CHost", "CPU", "CTestHost", "Fuzzing", "GuestMemory", "X86"],
            swiftSettings: strict),
        .testTarget(
            name: "DiskTests", dependencies: ["Disk", "Fuzzing", "Host", "HostProcess"], swiftSettings: strict),
        .testTarget(
            name: "FileShareTests", dependencies: ["CHost", "FileShare", "Fuzzing", "Host"], swiftSettings: strict),
        .testTarget(name: "DeviceModelTests", dependencies: ["DeviceModel", "Host"], swiftSettings: strict),
        .testTarget(
            name: "NetTests", dependencies: ["CHost", "Fuzzing", "Host", "HostNetwork", "Net"], swiftSettings: strict),
        .testTarget(
            name: "PlatformTests", dependencies: ["DeviceModel", "Fuzzing", "GuestMemory", "Host", "Platform", "X86"],
            swiftSettings: strict),
        .testTarget(
            name: "VirtioTests",
            dependencies: [
                "DeviceModel", "Disk", "FileShare", "Fuzzing", "GuestMemory", "Host", "HostNetwork", "Net", "Virtio",
                "X86",
            ],
            swiftSettings: strict),
        .testTarget(
            name: "VMMTests",
            dependencies: [
                "CHost", "DeviceModel", "Disk", "FileShare", "Fuzzing", "GuestMemory", "Host", "HostNetwork",
                "Hypervisor",
                "KernelKVM", "Net", "Platform", "SoftKVM", "Virtio", "VMM", "X86",
            ],
            swiftSettings: strict),
        // Whole guests with the release binary, and the host's own tools as judges.
        .testTarget(name: "RealGuestTests", dependencies: ["HostProcess"], swiftSettings: strict),
        .testTarget(
            name: "CommandLineToolTests",
            dependencies: [
                "CommandLineTool", "Disk", "Fuzzing", "Host", "HostNetwork", "HostProcess", "Net", "SoftKVM", "VMM",
                "Virtio",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: strict),
    ]
)
