package org.fleetune.android

import android.content.Context
import java.io.File
import org.fleetune.Fleetune
import org.fleetune.FolderStorage
import org.fleetune.ModelSource
import org.fleetune.OpenOptions
import org.fleetune.Platform

/**
 * Opens the base model with everything that Android brings: storage that is not backed up, the
 * Keystore, and the state of the device. One per app; close it, or `use` it.
 */
suspend fun Fleetune.Companion.open(
    context: Context,
    model: ModelSource,
    options: OpenOptions = OpenOptions(app = appName(context)),
): Fleetune {
    val application = context.applicationContext
    val folder = fleetuneFolder(application)
    val platform = Platform(
        storage = FolderStorage(folder),
        conditions = AndroidConditions(application),
        keys = AndroidKeys(File(folder, "device.key.sealed")),
    )
    val fleetune = Fleetune.open(model, platform, options)
    Instance.remember(application, fleetune, model)
    return fleetune
}

/** Not part of backups: what a user erased must not come back, and a key belongs to one device. */
internal fun fleetuneFolder(context: Context) = File(context.noBackupFilesDir, "fleetune")

private fun appName(context: Context): String {
    val version = context.packageManager.getPackageInfo(context.packageName, 0).versionName
    return "${context.packageName} ${version ?: ""}".trim()
}
