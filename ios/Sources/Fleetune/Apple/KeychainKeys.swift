#if canImport(Security)
import Foundation
import Security

/// The device's private key in the Keychain: on this device alone, once it has been unlocked since it
/// was switched on (work in the background needs it while the device is locked).
public final class KeychainKeys: KeyStore {
    private let account: String

    /// `account` tells several identities of one app apart.
    public init(account: String = "device") {
        self.account = account
    }

    public func load() throws -> Data? {
        var query = item
        query[kSecReturnData as String] = true
        var found: CFTypeRef?
        let status = SecItemCopyMatching(query as CFDictionary, &found)
        switch status {
        case errSecSuccess: return found as? Data
        case errSecItemNotFound: return nil
        default: throw failed("cannot be read", status)
        }
    }

    public func store(key: Data) throws {
        let removed = SecItemDelete(item as CFDictionary)
        guard removed == errSecSuccess || removed == errSecItemNotFound else {
            throw failed("cannot be replaced", removed)
        }
        var added = item
        added[kSecValueData as String] = key
        added[kSecAttrAccessible as String] = kSecAttrAccessibleAfterFirstUnlockThisDeviceOnly
        let status = SecItemAdd(added as CFDictionary, nil)
        guard status == errSecSuccess else { throw failed("cannot be kept", status) }
    }

    private var item: [String: Any] {
        [
            kSecClass as String: kSecClassGenericPassword,
            kSecAttrService as String: "org.fleetune",
            kSecAttrAccount as String: account,
        ]
    }

    private func failed(_ what: String, _ status: OSStatus) -> PlatformError {
        let reason = SecCopyErrorMessageString(status, nil) as String? ?? "status \(status)"
        return .Failed(reason: "the device's key \(what): \(reason)")
    }
}
#endif
