// swift-tools-version: 6.0
import PackageDescription

// On Apple's platforms the library is an XCFramework (`build-xcframework.sh`); elsewhere what cargo
// built, found with `-Xlinker -L…`.
#if os(Linux)
let library: Target = .systemLibrary(name: "FleetuneFFI", path: "Sources/FleetuneFFI")
#else
let library: Target = .binaryTarget(name: "FleetuneFFI", path: "FleetuneFFI.xcframework")
#endif

let package = Package(
    name: "Fleetune",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "Fleetune", targets: ["Fleetune"])],
    targets: [
        library,
        .target(name: "Fleetune", dependencies: ["FleetuneFFI"]),
        .testTarget(name: "FleetuneTests", dependencies: ["Fleetune"]),
    ],
    swiftLanguageModes: [.v6]
)
