package org.fleetune.android

import android.content.Context
import org.fleetune.Fleetune
import org.fleetune.ModelSource

/**
 * The app's one instance, for the job service: what is open in this process, else what was opened
 * last, so that a job that starts the process finds its model again.
 */
internal object Instance {
    private const val PREFERENCES = "fleetune"
    private const val MODEL = "model"

    @Volatile
    private var current: Fleetune? = null

    fun remember(context: Context, fleetune: Fleetune, model: ModelSource) {
        current = fleetune
        val path = when (model) {
            is ModelSource.File -> model.path
        }
        preferences(context).edit().putString(MODEL, path).apply()
    }

    /** The instance of this process, and whether it was opened for the caller, who then closes it. */
    suspend fun get(context: Context): Pair<Fleetune, Boolean>? {
        current?.takeIf(::isOpen)?.let { return it to false }
        val path = preferences(context).getString(MODEL, null) ?: return null
        return Fleetune.open(context, ModelSource.File(path)) to true
    }

    private fun isOpen(fleetune: Fleetune) = try {
        fleetune.federation()?.close()
        true
    } catch (_: IllegalStateException) {
        // Its `close` was called.
        false
    } catch (_: org.fleetune.JoinException.Closed) {
        false
    }

    private fun preferences(context: Context) =
        context.getSharedPreferences(PREFERENCES, Context.MODE_PRIVATE)
}
