#if os(iOS)
import BackgroundTasks
import Foundation

/// Takes part in rounds in a background processing task: while the device is charging, has a network
/// and nobody uses it. When iOS takes the time back, training ends within a layer's time, and what was
/// begun goes on the next time.
public enum BackgroundTraining {
    /// To be listed in the app's `Info.plist` under `BGTaskSchedulerPermittedIdentifiers`.
    public static let identifier = "org.fleetune.training"

    /// Registers the task; to be called before the app has finished launching. `open` gives the
    /// app's instance, and its conditions, whenever iOS grants time.
    public static func register(
        open: @escaping @Sendable () async throws -> (Fleetune, AppleConditions)
    ) {
        BGTaskScheduler.shared.register(forTaskWithIdentifier: identifier, using: nil) { task in
            schedule()
            // iOS calls from a queue of its own and expects the task back from anywhere.
            nonisolated(unsafe) let task = task
            let work = Task {
                do {
                    let (fleetune, conditions) = try await open()
                    conditions.setIdle(true)
                    defer { conditions.setIdle(false) }
                    try await fleetune.federation()?.run()
                    task.setTaskCompleted(success: true)
                } catch {
                    task.setTaskCompleted(success: false)
                }
            }
            task.expirationHandler = { work.cancel() }
        }
    }

    /// Asks iOS for time.
    public static func schedule() {
        let request = BGProcessingTaskRequest(identifier: identifier)
        request.requiresExternalPower = true
        request.requiresNetworkConnectivity = true
        // It fails where the user has switched background work off: then there is none.
        try? BGTaskScheduler.shared.submit(request)
    }
}
#endif
