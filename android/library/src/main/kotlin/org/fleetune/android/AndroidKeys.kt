package org.fleetune.android

import android.security.keystore.KeyGenParameterSpec
import android.security.keystore.KeyProperties
import java.io.File
import java.nio.file.Files
import java.nio.file.StandardCopyOption
import java.security.GeneralSecurityException
import java.security.KeyStore as JavaKeyStore
import javax.crypto.Cipher
import javax.crypto.KeyGenerator
import javax.crypto.SecretKey
import javax.crypto.spec.GCMParameterSpec
import org.fleetune.KeyStore
import org.fleetune.PlatformException

/**
 * The device's private key, sealed with a key that never leaves Android's Keystore (AES-GCM, in
 * hardware where there is some). Only the sealed form lies in [file].
 */
class AndroidKeys(private val file: File) : KeyStore {
    override fun load(): ByteArray? {
        if (!file.exists()) return null
        return failing("the device's key cannot be opened: join again with a new code") {
            openSealed(file.readBytes(), sealingKey())
        }
    }

    override fun store(key: ByteArray) {
        failing("the device's key cannot be kept") {
            file.parentFile?.mkdirs()
            val temporary = File(file.path + ".new")
            temporary.writeBytes(seal(key, sealingKey()))
            Files.move(temporary.toPath(), file.toPath(), StandardCopyOption.ATOMIC_MOVE)
        }
    }

    private fun <T> failing(what: String, work: () -> T): T = try {
        work()
    } catch (error: GeneralSecurityException) {
        throw PlatformException.Failed("$what ($error)")
    } catch (error: java.io.IOException) {
        throw PlatformException.Failed("$what ($error)")
    }

    private fun sealingKey(): SecretKey {
        val store = JavaKeyStore.getInstance(PROVIDER).apply { load(null) }
        (store.getKey(ALIAS, null) as SecretKey?)?.let { return it }
        val purposes = KeyProperties.PURPOSE_ENCRYPT or KeyProperties.PURPOSE_DECRYPT
        val spec = KeyGenParameterSpec.Builder(ALIAS, purposes)
            .setBlockModes(KeyProperties.BLOCK_MODE_GCM)
            .setEncryptionPaddings(KeyProperties.ENCRYPTION_PADDING_NONE)
            .build()
        return KeyGenerator.getInstance(KeyProperties.KEY_ALGORITHM_AES, PROVIDER)
            .apply { init(spec) }
            .generateKey()
    }

    internal companion object {
        private const val PROVIDER = "AndroidKeyStore"
        private const val ALIAS = "org.fleetune.device"
        private const val CIPHER = "AES/GCM/NoPadding"
        private const val NONCE_BYTES = 12
        private const val TAG_BITS = 128

        /** The nonce, which the cipher draws itself, and the sealed bytes. */
        fun seal(bytes: ByteArray, key: SecretKey): ByteArray {
            val cipher = Cipher.getInstance(CIPHER).apply { init(Cipher.ENCRYPT_MODE, key) }
            return cipher.iv + cipher.doFinal(bytes)
        }

        fun openSealed(sealed: ByteArray, key: SecretKey): ByteArray {
            if (sealed.size <= NONCE_BYTES) throw GeneralSecurityException("the file is cut short")
            val nonce = GCMParameterSpec(TAG_BITS, sealed, 0, NONCE_BYTES)
            val cipher = Cipher.getInstance(CIPHER).apply { init(Cipher.DECRYPT_MODE, key, nonce) }
            return cipher.doFinal(sealed, NONCE_BYTES, sealed.size - NONCE_BYTES)
        }
    }
}
