package org.fleetune

import java.io.File
import java.nio.file.Files
import java.nio.file.Path
import java.util.concurrent.TimeUnit
import kotlin.time.Duration.Companion.seconds
import kotlinx.coroutines.delay
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout

/** For every wait of a test: never reached unless something hangs. */
private val PATIENCE = 120.seconds

fun patiently(work: suspend () -> Unit): Unit = runBlocking { withTimeout(PATIENCE) { work() } }

/** The `fleetune` program, with a cache of its own that holds the tiny stand-in model. */
object Program {
    private val path: String = System.getProperty("fleetune.program")
    private val cache: Path = Files.createTempDirectory("fleetune-cache")

    val model: String by lazy {
        run("generate", "--model", "stand-in", "--prompt", "a", "--max-tokens", "1")
        cache.resolve("models/stand-in").toString()
    }

    init {
        Runtime.getRuntime().addShutdownHook(Thread { cache.toFile().deleteRecursively() })
    }

    fun start(vararg args: String): Process = ProcessBuilder(listOf(path, *args))
        .apply { environment()["FLEETUNE_CACHE"] = cache.toString() }
        .redirectError(ProcessBuilder.Redirect.DISCARD)
        .start()

    fun run(vararg args: String): String {
        val process = start(*args)
        val output = process.inputStream.bufferedReader().readText()
        check(process.waitFor() == 0) { "${args.toList()} failed: $output" }
        return output
    }
}

/** A federation, served: rounds of one update. */
class Server(private val folder: File, rounds: Int = 2, training: String = "") : AutoCloseable {
    private val process: Process
    private val adapterFile = File(folder, "state/adapters/notes/adapter_model.safetensors")
    private val first: ByteArray

    init {
        folder.mkdirs()
        val config = File(folder, "serve.toml")
        config.writeText(
            """
            state = "$folder/state"
            listen = "127.0.0.1:0"
            [[federation]]
            name = "notes"
            [federation.training]
            model = "${Program.model}"
            sample = 1
            rounds = $rounds
            seq_len = 320
            steps = 3
            batch_size = 2
            lr = 1e-2
            codec = "f32"
            $training
            [federation.rounds]
            over_selection = 1.0
            check_in = "50ms"
            """.trimIndent(),
        )
        process = Program.start("serve", config.path, "--json")
        process.inputStream.bufferedReader().readLine()
        while (!adapterFile.exists()) Thread.sleep(20)
        first = adapterFile.readBytes()
    }

    fun invite(): String {
        val told = Program.run("admin", "--json", "--state", "$folder/state", "invite", "--uses", "5")
        return Regex("ft1-[a-z0-9]+").find(told)!!.value
    }

    /** The shared adapter's file after a round: the server writes it once it has closed one. */
    suspend fun adapter(): ByteArray {
        while (adapterFile.readBytes().contentEquals(first)) delay(20)
        return adapterFile.readBytes()
    }

    override fun close() {
        process.destroy()
        process.waitFor(20, TimeUnit.SECONDS)
    }
}

suspend fun open(
    folder: File,
    conditions: DeviceConditions? = null,
    keys: KeyStore? = null,
    model: String = Program.model,
    options: OpenOptions = OpenOptions(),
): Fleetune =
    Fleetune.open(ModelSource.File(model), Platform(FolderStorage(folder), conditions, keys), options)

/** All the same: each device goes through its examples in an order of its own. */
suspend fun Fleetune.fill() {
    examples.use { store ->
        repeat(6) { store.add(Example(instruction = "Say 3.", response = "It is 3.")) }
    }
}

/** A key store, as a platform would bring one. */
class MemoryKeys : KeyStore {
    var key: ByteArray? = null

    override fun load() = key

    override fun store(key: ByteArray) {
        this.key = key
    }
}

val READY = DeviceState(charging = true, unmetered = true, idle = true, thermal = ThermalState.NOMINAL)
val ANYWHERE = TakePartOptions(requirements = backgroundRequirements())
