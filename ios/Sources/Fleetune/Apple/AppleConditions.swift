#if os(iOS)
import Foundation
import Network
import UIKit

/// How the device is, as iOS tells. The library asks on a thread of its own, and most of UIKit answers
/// on the main one: what is known is kept here, and renewed as notices come.
public final class AppleConditions: DeviceConditions, @unchecked Sendable {
    private struct Known {
        var charging = false
        var batteryPercent: UInt8?
        var unmetered = false
        var lowMemory = false
        var idle = false
    }

    private let lock = NSLock()
    private var known = Known()
    private let monitor = NWPathMonitor()
    private let memory = DispatchSource.makeMemoryPressureSource(eventMask: .all)
    private var observers: [any NSObjectProtocol] = []

    /// Begins to watch.
    @MainActor
    public init() {
        UIDevice.current.isBatteryMonitoringEnabled = true
        monitor.pathUpdateHandler = { [weak self] path in
            self?.change { $0.unmetered = path.status == .satisfied && !path.isExpensive }
        }
        monitor.start(queue: .global(qos: .utility))
        memory.setEventHandler { [weak self] in
            guard let self else { return }
            let low = !memory.data.intersection([.warning, .critical]).isEmpty
            change { $0.lowMemory = low }
        }
        memory.activate()
        let names = [
            UIDevice.batteryStateDidChangeNotification, UIDevice.batteryLevelDidChangeNotification,
        ]
        observers = names.map { name in
            NotificationCenter.default.addObserver(forName: name, object: nil, queue: .main) {
                [weak self] _ in
                MainActor.assumeIsolated { self?.readBattery() }
            }
        }
        readBattery()
    }

    deinit {
        monitor.cancel()
        memory.cancel()
        observers.forEach(NotificationCenter.default.removeObserver)
    }

    public func current() throws -> DeviceState {
        let known = lock.withLock { self.known }
        return DeviceState(
            charging: known.charging,
            unmetered: known.unmetered,
            idle: known.idle,
            thermal: thermalState(ProcessInfo.processInfo.thermalState),
            batteryPercent: known.batteryPercent,
            lowMemory: known.lowMemory
        )
    }

    /// iOS does not tell whether anybody uses the device; a background processing task runs only while
    /// nobody does.
    func setIdle(_ idle: Bool) {
        change { $0.idle = idle }
    }

    @MainActor
    private func readBattery() {
        let device = UIDevice.current
        let charging = device.batteryState == .charging || device.batteryState == .full
        let level = device.batteryLevel
        change {
            $0.charging = charging
            // Negative where it is not known.
            $0.batteryPercent = level < 0 ? nil : UInt8((level * 100).rounded())
        }
    }

    private func change(_ change: (inout Known) -> Void) {
        lock.withLock { change(&known) }
    }
}
#endif
