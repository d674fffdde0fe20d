package org.fleetune.android

import android.app.job.JobInfo
import android.app.job.JobParameters
import android.app.job.JobScheduler
import android.app.job.JobService
import android.content.ComponentName
import android.content.Context
import android.os.PersistableBundle
import android.util.Log
import java.util.concurrent.TimeUnit
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.launch
import org.fleetune.Federation
import org.fleetune.FederationException
import org.fleetune.Fleetune
import org.fleetune.OpenException
import org.fleetune.TakePartOptions
import org.fleetune.backgroundRequirements

/**
 * Takes part in rounds while the device is charging, idle and on an unmetered network. Android ends
 * the job when one of these ends; the library looks by itself, too, and pauses within a second. What
 * was begun goes on the next time.
 */
class FleetuneJobService : JobService() {
    private val scope = CoroutineScope(SupervisorJob() + Dispatchers.Default)

    @Volatile
    private var running: Job? = null

    override fun onStartJob(parameters: JobParameters): Boolean {
        val device = parameters.extras.getString(DEVICE)
        running = scope.launch {
            try {
                work(device)
            } catch (error: CancellationException) {
                throw error
            } catch (error: FederationException) {
                Log.w(TAG, "takes part no longer: ${error.message}")
            } catch (error: OpenException) {
                Log.w(TAG, "cannot be opened: ${error.message}")
            }
            // It is periodic: there is a next time anyway.
            jobFinished(parameters, false)
        }
        return true
    }

    /** Conditions have ended: the coroutine's end ends the work within a layer's time. */
    override fun onStopJob(parameters: JobParameters): Boolean {
        running?.cancel()
        return true
    }

    override fun onDestroy() {
        running?.cancel()
        super.onDestroy()
    }

    /** Takes part, unless [device] has left its federation meanwhile. */
    private suspend fun work(device: String?) {
        val (fleetune, mine) = Instance.get(this) ?: return
        try {
            fleetune.federation()?.use { if (it.device() == device) takePart(it) }
        } finally {
            if (mine) closeHere(fleetune)
        }
    }

    private suspend fun takePart(federation: Federation) {
        AndroidConditions(this).watch(federation).use {
            federation.takePart(TakePartOptions(requirements = backgroundRequirements()))
        }
    }

    private fun closeHere(fleetune: Fleetune) {
        fleetune.shutdown()
        fleetune.close()
    }

    companion object {
        private const val TAG = "fleetune"
        private const val JOB = 0x0f1ee7
        private const val DEVICE = "device"
        private val PERIOD = TimeUnit.HOURS.toMillis(1)

        /** Lets the device take part in [federation] whenever it is fit for it, from now on. */
        fun schedule(context: Context, federation: Federation) {
            scheduler(context).schedule(jobInfo(context, federation.device()))
        }

        /** Takes [schedule] back. */
        fun cancel(context: Context) = scheduler(context).cancel(JOB)

        private fun scheduler(context: Context) = context.service<JobScheduler>()

        private fun jobInfo(context: Context, device: String) =
            JobInfo.Builder(JOB, ComponentName(context, FleetuneJobService::class.java))
                .setRequiresCharging(true)
                .setRequiresDeviceIdle(true)
                .setRequiredNetworkType(JobInfo.NETWORK_TYPE_UNMETERED)
                .setPeriodic(PERIOD)
                .setExtras(PersistableBundle().apply { putString(DEVICE, device) })
                .build()
    }
}
