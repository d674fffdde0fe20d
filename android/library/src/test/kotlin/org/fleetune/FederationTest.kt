package org.fleetune

import java.io.File
import java.util.concurrent.CountDownLatch
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNotEquals
import org.junit.jupiter.api.Assertions.assertNotNull
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir

/** Stops in the middle of an upload and says so: what [FederationTest] starts, kills and picks up after. */
object DyingApp {
    const val UPLOADING = "in the middle of an upload"

    @JvmStatic
    fun main(args: Array<String>) = patiently {
        val (folder, model, code) = args
        // Held until the end: what nobody holds is closed, and ends what it was at.
        open(File(folder), model = model).use { fleetune ->
            fleetune.fill()
            val federation = fleetune.join(code)
            federation.subscribe(object : FederationListener {
                override fun onEvent(event: FederationEvent) {
                    if (event is FederationEvent.Uploading) {
                        println(UPLOADING)
                        Thread.sleep(60_000)
                    }
                }
            }).use { federation.takePart(ANYWHERE) }
        }
    }
}

class FederationTest {
    @TempDir
    lateinit var folder: File

    private inline fun <reified E : Throwable> fails(crossinline work: suspend () -> Unit): E =
        assertThrows<E> { patiently { work() } }

    private suspend fun Federation.takePartHearing(): List<FederationEvent> = coroutineScope {
        // Unconfined: the flow has subscribed before anything happens.
        val heard = async(Dispatchers.Unconfined) { events.toList() }
        takePart(ANYWHERE)
        heard.await()
    }

    @Test
    fun `a device joins, trains and writes with the shared adapter`() = patiently {
        Server(File(folder, "server")).use { server ->
            val keys = MemoryKeys()
            val device = open(File(folder, "device"), keys = keys).use { fleetune ->
                assertNull(fleetune.federation())
                fleetune.fill()
                val federation = fleetune.join(server.invite())
                val heard = federation.takePartHearing()
                assertNotNull(keys.key)
                val new = heard.filterIsInstance<FederationEvent.NewAdapter>().map { it.round }
                // The third is what the federation ended with.
                assertEquals(listOf(1u, 2u, 3u), new)
                val steps = heard.filterIsInstance<FederationEvent.Training>()
                assertEquals(listOf(1u, 2u, 3u, 1u, 2u, 3u), steps.map { it.step })
                assertTrue(steps.all { it.of == 3u })
                val done = heard.filterIsInstance<FederationEvent.RoundDone>()
                assertEquals(List(2) { UpdateFate.Accepted }, done.map { it.fate })
                assertEquals(FederationEvent.Finished, heard.last())
                val options = GenerateOptions(maxTokens = 24u)
                val texts = listOf(AdapterChoice.BASE, AdapterChoice.SHARED).map {
                    fleetune.generate("Say 3.", options.copy(adapter = it)).text
                }
                assertNotEquals(texts[0], texts[1])
                federation.device()
            }
            open(File(folder, "device"), keys = keys).use { fleetune ->
                assertEquals(device, fleetune.federation()?.device())
            }
        }
    }

    @Test
    fun `conditions pause training and the result is the same`() = patiently {
        val calm = Server(File(folder, "calm"), rounds = 1).use { server ->
            open(File(folder, "one")).use { fleetune ->
                fleetune.fill()
                fleetune.join(server.invite()).takePart(ANYWHERE)
            }
            server.adapter()
        }
        Server(File(folder, "stormy"), rounds = 1).use { server ->
            val device = object : DeviceConditions {
                @Volatile
                var state = READY

                override fun current() = state
            }
            open(File(folder, "two"), conditions = device).use { fleetune ->
                fleetune.fill()
                val federation = fleetune.join(server.invite())
                val paused = CountDownLatch(1)
                val heard = java.util.Collections.synchronizedList(mutableListOf<FederationEvent>())
                val listener = object : FederationListener {
                    override fun onEvent(event: FederationEvent) {
                        heard += event
                        if (event is FederationEvent.Training && event.step == 1u) {
                            device.state = READY.copy(charging = false)
                            federation.deviceChanged()
                            // The library's own thread looks at the device; this one trains.
                            paused.await()
                        }
                        if (event is FederationEvent.Paused) paused.countDown()
                    }
                }
                federation.subscribe(listener).use {
                    coroutineScope {
                        val work = launch { federation.takePart(ANYWHERE) }
                        withContext(Dispatchers.IO) { paused.await() }
                        // However long one waits, no step is taken.
                        delay(1500)
                        assertEquals(1, heard.count { it is FederationEvent.Training })
                        assertTrue(FederationEvent.Paused(PauseReason.NotCharging) in heard)
                        device.state = READY
                        work.join()
                    }
                }
            }
            assertArrayEquals(calm, server.adapter())
        }
    }

    @Test
    fun `an app that is killed in an upload goes on with it`() = patiently {
        val targets = """["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]"""
        val large = "lora_rank = 128\nlora_targets = $targets"
        Server(File(folder, "server"), rounds = 1, training = large).use { server ->
            val device = File(folder, "device")
            val java = ProcessHandle.current().info().command().get()
            val dying = ProcessBuilder(
                java, "-cp", System.getProperty("java.class.path"),
                "-Djna.library.path=" + System.getProperty("jna.library.path"),
                "-Dfleetune.program=" + System.getProperty("fleetune.program"),
                "org.fleetune.DyingApp", device.path, Program.model, server.invite(),
            ).redirectError(ProcessBuilder.Redirect.INHERIT).start()
            val said = dying.inputStream.bufferedReader().lineSequence()
            assertTrue(said.any { it == DyingApp.UPLOADING }, "it ended before its upload")
            dying.destroyForcibly().waitFor()
            assertTrue(File(device, "device/outbox/offer.json").exists())
            open(device).use { fleetune ->
                val heard = fleetune.federation()!!.takePartHearing()
                assertTrue(heard.none { it is FederationEvent.Training }, "it was trained before")
                assertTrue(heard.any { it is FederationEvent.RoundDone })
            }
        }
    }

    @Test
    fun `codes and uses that are wrong are told`() = patiently {
        Server(File(folder, "server")).use { server ->
            open(File(folder, "device")).use { fleetune ->
                val error = fails<JoinException.WrongCode> { fleetune.join("hello") }
                assertTrue("starts with ft1-" in error.message!!, error.message)
                val federation = fleetune.join(server.invite())
                fails<FederationException.NoExamples> { federation.takePart(ANYWHERE) }
                federation.leave()
                assertNull(fleetune.federation())
            }
        }
    }

    @Test
    fun `a key store that fails is told and a listener that throws is left out`() = patiently {
        Server(File(folder, "server"), rounds = 1).use { server ->
            val broken = object : KeyStore {
                override fun load(): ByteArray? = throw PlatformException.Failed("it is locked")

                override fun store(key: ByteArray) = Unit
            }
            open(File(folder, "one"), keys = broken).use { fleetune ->
                val error = fails<JoinException.KeyStore> { fleetune.join(server.invite()) }
                assertTrue("it is locked" in error.message!!, error.message)
            }
            var calls = 0
            val angry = object : FederationListener {
                override fun onEvent(event: FederationEvent) {
                    calls++
                    error("not now")
                }
            }
            open(File(folder, "two")).use { fleetune ->
                fleetune.fill()
                val federation = fleetune.join(server.invite())
                federation.subscribe(angry).use { federation.takePart(ANYWHERE) }
            }
            assertEquals(1, calls)
        }
    }
}
