package org.fleetune

import java.io.File
import kotlin.time.Duration.Companion.seconds
import kotlin.time.measureTime
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNotEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir

class DeviceTest {
    @TempDir
    lateinit var folder: File

    private inline fun <reified E : Throwable> fails(crossinline work: suspend () -> Unit): E =
        assertThrows<E> { patiently { work() } }

    @Test
    fun `text flows in pieces that make the whole`() = patiently {
        open(folder).use { fleetune ->
            val options = GenerateOptions(maxTokens = 20u)
            val pieces = fleetune.stream("Hello", options).toList()
            assertEquals(fleetune.generate("Hello", options).text, pieces.joinToString(""))
            assertEquals(3, fleetune.generate("Hello").take(3).toList().size)
        }
    }

    @Test
    fun `examples stay until they are erased`() = patiently {
        open(folder).use { it.fill() }
        open(folder).use { fleetune ->
            assertEquals(6uL, fleetune.examples.count())
            fleetune.examples.eraseAll()
            assertEquals(0uL, fleetune.examples.count())
        }
        val files = folder.walk().filter { it.isFile }.map { it.readText(Charsets.ISO_8859_1) }
        assertTrue(files.none { "It is 3." in it })
    }

    @Test
    fun `training learns and its adapter writes`() = patiently {
        open(folder).use { fleetune ->
            fails<TrainException.NoExamples> { fleetune.train(TrainOptions()) }
            fleetune.fill()
            val steps = mutableListOf<TrainStep>()
            val report = fleetune.train(TrainOptions(steps = 12u, learningRate = 2e-2)) { steps += it }
            assertEquals((1u..12u).toList(), steps.map { it.step })
            assertTrue(report.lastLoss < report.firstLoss)
            val options = GenerateOptions(maxTokens = 16u)
            val plain = fleetune.generate("Say 3.", options.copy(adapter = AdapterChoice.BASE))
            assertNotEquals(plain.text, fleetune.generate("Say 3.", options).text)
            fleetune.eraseAdapters()
            assertEquals(plain.text, fleetune.generate("Say 3.", options).text)
        }
    }

    @Test
    fun `a training that pauses ends with the same adapter`() = patiently {
        suspend fun adapter(folder: File, train: suspend (Fleetune) -> Unit): ByteArray {
            open(folder).use { fleetune ->
                fleetune.fill()
                train(fleetune)
            }
            return File(folder, "adapters/local/adapter_model.safetensors").readBytes()
        }
        val undisturbed = adapter(File(folder, "one")) { it.train(TrainOptions(steps = 8u)) }
        val paused = adapter(File(folder, "two")) { fleetune ->
            coroutineScope {
                val afterTwo = CompletableDeferred<Unit>()
                val training = async {
                    fleetune.train(TrainOptions(steps = 8u)) {
                        if (it.step == 2u) {
                            fleetune.pause()
                            afterTwo.complete(Unit)
                        }
                    }
                }
                afterTwo.await()
                delay(300)
                assertTrue(training.isActive)
                fleetune.resume()
                training.await()
            }
        }
        assertArrayEquals(undisturbed, paused)
    }

    @Test
    fun `a coroutine that is cancelled in a step ends at once and leaves no trace`() = patiently {
        open(folder).use { fleetune ->
            fleetune.fill()
            val times = List(3) {
                coroutineScope {
                    val training = launch { fleetune.train(TrainOptions(steps = 100_000u)) }
                    delay(400)
                    measureTime {
                        training.cancelAndJoin()
                        // Closing waits for work; this only asks whether any is left.
                        fleetune.cancel()
                    }
                }
            }
            // Tenths of a second on a machine that does nothing else; hours without the cancelling.
            assertTrue(times.min() < 10.seconds, "$times")
            assertFalse(File(folder, "adapters").exists())
        }
    }

    @Test
    fun `wrong files, second instances and closed ones are told`() = patiently {
        val wrong = File(folder, "wrong.gguf").apply { writeText("GGUF and then nonsense") }
        val error = fails<OpenException.Model> { open(folder, model = wrong.path) }
        assertTrue("wrong.gguf" in error.message!!, error.message)
        val fleetune = open(folder)
        fails<OpenException.InUse> { open(folder) }
        fleetune.shutdown()
        fails<GenerateException.Closed> { fleetune.generate("Hello", GenerateOptions()) }
        open(folder).close()
        fleetune.close()
        assertThrows<IllegalStateException> { fleetune.pause() }
    }

    @Test
    fun `listeners that throw end the work with an error`() = patiently {
        open(folder).use { fleetune ->
            fleetune.fill()
            val angry = object : TokenListener {
                override fun onText(piece: String): Unit = error("no more words")
            }
            val error = fails<GenerateException.Listener> {
                fleetune.generate("Hello", GenerateOptions(), angry)
            }
            assertTrue("no more words" in error.message!!, error.message)
            fails<TrainException.Listener> { fleetune.train { error("no more steps") } }
        }
    }

    @Test
    fun `memory stays flat over two hundred lives`() = patiently {
        suspend fun life() = open(folder).use { fleetune ->
            fleetune.examples.use { it.add(Example(instruction = "Say 3.", response = "It is 3.")) }
            fleetune.train(TrainOptions(steps = 1u, batchSize = 1u))
        }
        fun resident(): Long {
            System.gc()
            return File("/proc/self/statm").readText().split(' ')[1].toLong() * 4096
        }
        repeat(100) { life() }
        val before = resident()
        repeat(100) { life() }
        val grown = resident() - before
        // The heap breathes; an instance that stayed would hold above 100 KiB beside it.
        assertTrue(grown < 10 shl 20, "$grown bytes more after 100 lives")
    }
}
