#if canImport(Darwin)
import Foundation

/// The system's four steps are the library's.
func thermalState(_ state: ProcessInfo.ThermalState) -> ThermalState {
    switch state {
    case .nominal: .nominal
    case .fair: .fair
    case .serious: .serious
    case .critical: .critical
    @unknown default: .critical
    }
}
#endif
