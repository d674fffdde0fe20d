package org.fleetune.android

import java.security.GeneralSecurityException
import javax.crypto.KeyGenerator
import org.fleetune.ThermalState
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNotEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows

/** What can be known of the platform's parts without a device. */
class AndroidPartsTest {
    private val key = KeyGenerator.getInstance("AES").apply { init(256) }.generateKey()

    @Test
    fun `a sealed key opens as it was, and not when a byte of it has changed`() {
        val secret = ByteArray(120) { it.toByte() }
        val sealed = AndroidKeys.seal(secret, key)
        assertArrayEquals(secret, AndroidKeys.openSealed(sealed, key))
        assertNotEquals(sealed.toList(), AndroidKeys.seal(secret, key).toList())
        for (at in sealed.indices) {
            val damaged = sealed.copyOf().also { it[at] = (it[at] + 1).toByte() }
            assertThrows<GeneralSecurityException> { AndroidKeys.openSealed(damaged, key) }
        }
        assertThrows<GeneralSecurityException> { AndroidKeys.openSealed(sealed.copyOf(5), key) }
    }

    @Test
    fun `seven thermal steps become four, and unknown ones the hottest`() {
        val states = (0..6).map(AndroidConditions::thermalState)
        val expected = listOf(
            ThermalState.NOMINAL, ThermalState.FAIR, ThermalState.SERIOUS, ThermalState.SERIOUS,
            ThermalState.CRITICAL, ThermalState.CRITICAL, ThermalState.CRITICAL,
        )
        assertEquals(expected, states)
        assertEquals(ThermalState.CRITICAL, AndroidConditions.thermalState(99))
    }

    @Test
    fun `a device without a battery has no charge`() {
        assertNull(AndroidConditions.percent(Int.MIN_VALUE))
        assertEquals(77u.toUByte(), AndroidConditions.percent(77))
    }
}
