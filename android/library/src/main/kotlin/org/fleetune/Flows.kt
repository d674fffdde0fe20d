package org.fleetune

import java.io.File
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.channels.awaitClose
import kotlinx.coroutines.channels.trySendBlocking
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.buffer
import kotlinx.coroutines.flow.callbackFlow
import kotlinx.coroutines.flow.channelFlow

/** The private store of examples: they stay on this device until they are erased. */
val Fleetune.examples: Examples
    get() = exampleStore()

/** Answers [prompt], piece by piece. Whoever stops collecting ends the writing. */
fun Fleetune.generate(prompt: String): Flow<String> = stream(prompt, GenerateOptions())

/** Answers [prompt], piece by piece, as [options] say. */
fun Fleetune.stream(prompt: String, options: GenerateOptions): Flow<String> = channelFlow {
    val listener = object : TokenListener {
        override fun onText(piece: String) {
            // A collector that is gone: the writing ends with its coroutine.
            trySendBlocking(piece)
        }
    }
    generate(prompt, options, listener)
}.buffer(Channel.UNLIMITED)

/** Trains on this device's examples; [onStep] hears of each step, on a thread of the library. */
suspend fun Fleetune.train(
    options: TrainOptions = TrainOptions(),
    onStep: (TrainStep) -> Unit,
): TrainReport = train(options, object : TrainListener {
    override fun onStep(step: TrainStep) = onStep(step)
})

/** What happens while this device takes part; ends when the federation does. */
val Federation.events: Flow<FederationEvent>
    get() = callbackFlow {
        val subscription = subscribe(object : FederationListener {
            override fun onEvent(event: FederationEvent) {
                trySend(event)
                if (event is FederationEvent.Finished) close()
            }
        })
        awaitClose {
            subscription.cancel()
            subscription.close()
        }
    }.buffer(Channel.UNLIMITED)

/** Keeps everything in one folder. */
class FolderStorage(private val folder: File) : StorageLocation {
    override fun folder(): String = folder.path
}
