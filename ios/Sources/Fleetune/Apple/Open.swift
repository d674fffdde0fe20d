#if os(iOS)
import Foundation

extension Fleetune {
    /// Opens the base model with everything that iOS brings: storage that is not backed up, the
    /// Keychain, and the state of the device. One per app.
    @MainActor
    public static func open(
        model: ModelSource,
        conditions: AppleConditions? = nil,
        options: OpenOptions = OpenOptions()
    ) async throws -> Fleetune {
        var folder = try FileManager.default.url(
            for: .applicationSupportDirectory, in: .userDomainMask, appropriateFor: nil, create: true
        ).appendingPathComponent("fleetune", isDirectory: true)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        var values = URLResourceValues()
        values.isExcludedFromBackup = true
        try folder.setResourceValues(values)
        let platform = Platform(
            storage: FolderStorage(folder),
            conditions: conditions ?? AppleConditions(),
            keys: KeychainKeys()
        )
        return try await Fleetune.open(model: model, platform: platform, options: options)
    }
}
#endif
