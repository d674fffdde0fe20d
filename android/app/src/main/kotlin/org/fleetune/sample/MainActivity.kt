package org.fleetune.sample

import android.app.Activity
import android.os.Bundle
import android.view.View
import android.view.ViewGroup
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.TextView
import java.io.File
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch
import org.fleetune.Example
import org.fleetune.Federation
import org.fleetune.FederationEvent
import org.fleetune.Fleetune
import org.fleetune.ModelSource
import org.fleetune.Requirements
import org.fleetune.TakePartOptions
import org.fleetune.android.FleetuneJobService
import org.fleetune.android.open
import org.fleetune.events
import org.fleetune.examples
import org.fleetune.generate

/**
 * One screen: join, examples, train now, progress, erase. The model is a GGUF file that was put into
 * the app's files as `model.gguf` (`adb push`, then `run-as`).
 */
class MainActivity : Activity() {
    private val scope = CoroutineScope(SupervisorJob() + Dispatchers.Main)
    private lateinit var fleetune: Fleetune
    private lateinit var progress: TextView

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        val code = field("Join code")
        val instruction = field("Instruction")
        val response = field("The answer you would have liked")
        progress = TextView(this)
        val column = LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            setPadding(PADDING, PADDING, PADDING, PADDING)
            addView(code)
            addView(button("Join") { join(code.text.toString().trim()) })
            addView(instruction)
            addView(response)
            addView(button("Keep as an example") { keep(instruction, response) })
            addView(button("Write") { write(instruction.text.toString()) })
            addView(button("Train now") { trainNow() })
            addView(button("Erase all examples") { erase() })
            addView(progress)
        }
        setContentView(ScrollView(this).apply { addView(column) })
        act {
            fleetune = Fleetune.open(this, ModelSource.File(File(filesDir, "model.gguf").path))
            show("${fleetune.examples.count()} examples")
        }
    }

    override fun onDestroy() {
        scope.cancel()
        if (::fleetune.isInitialized) fleetune.close()
        super.onDestroy()
    }

    private suspend fun join(code: String) {
        val federation = fleetune.join(code)
        FleetuneJobService.schedule(this, federation)
        show("Joined as ${federation.device()}: trains while charging, idle and on a free network")
    }

    private suspend fun keep(instruction: EditText, response: EditText) {
        val example = Example(instruction.text.toString(), response.text.toString())
        fleetune.examples.add(example)
        response.text.clear()
        show("${fleetune.examples.count()} examples")
    }

    private suspend fun write(prompt: String) {
        val text = StringBuilder()
        fleetune.generate(prompt).collect { piece ->
            text.append(piece)
            show(text)
        }
    }

    /** The user asks for it and is looking: neither charging nor idleness is needed. */
    private suspend fun trainNow() {
        val federation = fleetune.federation() ?: return show("Join a federation first")
        val shown = scope.launch { federation.events.collect { show(words(it)) } }
        try {
            val requirements = Requirements(charging = false, idle = false)
            federation.takePart(TakePartOptions(requirements, rounds = 1u))
        } finally {
            shown.cancel()
        }
    }

    private suspend fun erase() {
        fleetune.examples.eraseAll()
        show("No examples")
    }

    private fun words(event: FederationEvent) = when (event) {
        is FederationEvent.Waiting -> "Waiting ${event.reason ?: "for a round"}"
        is FederationEvent.Fetching -> "Fetching: ${event.done} of ${event.size} bytes"
        is FederationEvent.NewAdapter -> "Round ${event.round} begins"
        is FederationEvent.Training -> "Training: step ${event.step} of ${event.of}, loss ${event.loss}"
        is FederationEvent.Paused -> "Paused: ${event.reason}"
        is FederationEvent.Resumed -> "Goes on"
        is FederationEvent.Uploading -> "Sending: ${event.sent} of ${event.of}"
        is FederationEvent.RoundDone -> "Round ${event.round}: ${event.fate}"
        is FederationEvent.Trouble -> event.problem
        is FederationEvent.Finished -> "Done"
    }

    private fun act(work: suspend () -> Unit) {
        scope.launch {
            try {
                work()
            } catch (error: Exception) {
                if (error is kotlinx.coroutines.CancellationException) throw error
                show(error.message ?: error.toString())
            }
        }
    }

    private fun show(text: CharSequence) {
        progress.text = text
    }

    private fun field(hint: String) = EditText(this).apply { this.hint = hint }

    private fun button(text: String, work: suspend () -> Unit): View = Button(this).apply {
        this.text = text
        layoutParams = LinearLayout.LayoutParams(
            ViewGroup.LayoutParams.MATCH_PARENT,
            ViewGroup.LayoutParams.WRAP_CONTENT,
        )
        setOnClickListener { act(work) }
    }

    private companion object {
        const val PADDING = 32
    }
}
