package org.fleetune.android

import android.app.ActivityManager
import android.content.BroadcastReceiver
import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.net.ConnectivityManager
import android.net.Network
import android.net.NetworkCapabilities
import android.os.BatteryManager
import android.os.Build
import android.os.PowerManager
import org.fleetune.DeviceConditions
import org.fleetune.DeviceState
import org.fleetune.Federation
import org.fleetune.ThermalState

/** How the device is, as Android's services tell. */
class AndroidConditions(context: Context) : DeviceConditions {
    private val context = context.applicationContext
    private val battery = context.service<BatteryManager>()
    private val connectivity = context.service<ConnectivityManager>()
    private val power = context.service<PowerManager>()
    private val activity = context.service<ActivityManager>()

    override fun current() = DeviceState(
        charging = battery.isCharging,
        unmetered = isUnmetered(),
        idle = !power.isInteractive,
        thermal = thermal(),
        batteryPercent = percent(battery.getIntProperty(BatteryManager.BATTERY_PROPERTY_CAPACITY)),
        lowMemory = ActivityManager.MemoryInfo().also(activity::getMemoryInfo).lowMemory,
    )

    private fun isUnmetered(): Boolean {
        val network = connectivity.activeNetwork ?: return false
        val capabilities = connectivity.getNetworkCapabilities(network) ?: return false
        return capabilities.hasCapability(NetworkCapabilities.NET_CAPABILITY_NOT_METERED)
    }

    private fun thermal() = when {
        Build.VERSION.SDK_INT < Build.VERSION_CODES.Q -> ThermalState.NOMINAL
        else -> thermalState(power.currentThermalStatus)
    }

    /**
     * Tells [federation] of changes as they happen, rather than within a second; closing the answer
     * ends that.
     */
    fun watch(federation: Federation): AutoCloseable {
        val receiver = object : BroadcastReceiver() {
            override fun onReceive(context: Context, intent: Intent) = federation.deviceChanged()
        }
        val changes = IntentFilter().apply {
            addAction(Intent.ACTION_POWER_CONNECTED)
            addAction(Intent.ACTION_POWER_DISCONNECTED)
            addAction(Intent.ACTION_SCREEN_ON)
            addAction(Intent.ACTION_SCREEN_OFF)
        }
        context.registerReceiver(receiver, changes)
        val network = object : ConnectivityManager.NetworkCallback() {
            override fun onAvailable(network: Network) = federation.networkChanged()

            override fun onLost(network: Network) = federation.deviceChanged()

            override fun onCapabilitiesChanged(network: Network, now: NetworkCapabilities) =
                federation.deviceChanged()
        }
        connectivity.registerDefaultNetworkCallback(network)
        return AutoCloseable {
            context.unregisterReceiver(receiver)
            connectivity.unregisterNetworkCallback(network)
        }
    }

    internal companion object {
        /** Devices without a battery say something outside of 0 to 100. */
        fun percent(capacity: Int): UByte? = capacity.takeIf { it in 0..100 }?.toUByte()

        /** Android's seven steps in four. */
        fun thermalState(status: Int) = when (status) {
            PowerManager.THERMAL_STATUS_NONE -> ThermalState.NOMINAL
            PowerManager.THERMAL_STATUS_LIGHT -> ThermalState.FAIR
            PowerManager.THERMAL_STATUS_MODERATE -> ThermalState.SERIOUS
            PowerManager.THERMAL_STATUS_SEVERE -> ThermalState.SERIOUS
            else -> ThermalState.CRITICAL
        }
    }
}
