package org.fleetune.android

import android.content.Context

/** A service that every Android device has. */
internal inline fun <reified T : Any> Context.service(): T =
    checkNotNull(getSystemService(T::class.java)) { "Android has no ${T::class.java.simpleName}" }
