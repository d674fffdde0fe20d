import Foundation
import Testing

@testable import Fleetune

/// The `fleetune` program that `FLEETUNE_PROGRAM` names, with a cache of its own that holds the tiny
/// stand-in model.
private struct Program {
    static let path = ProcessInfo.processInfo.environment["FLEETUNE_PROGRAM"]

    let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    var model: String { folder.appendingPathComponent("cache/models/stand-in").path }

    init() throws {
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try run("generate", "--model", "stand-in", "--prompt", "a", "--max-tokens", "1")
    }

    func start(_ arguments: [String]) throws -> (process: Process, output: FileHandle) {
        let (process, pipe) = (Process(), Pipe())
        process.executableURL = URL(fileURLWithPath: try #require(Program.path))
        process.arguments = arguments
        process.environment = ["FLEETUNE_CACHE": folder.appendingPathComponent("cache").path]
        process.standardOutput = pipe
        process.standardError = FileHandle.nullDevice
        try process.run()
        return (process, pipe.fileHandleForReading)
    }

    @discardableResult
    func run(_ arguments: String...) throws -> String {
        let (process, output) = try start(arguments)
        let text = String(decoding: output.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        try #require(process.terminationStatus == 0, "\(arguments) failed: \(text)")
        return text
    }

    /// A federation of one device and two rounds, served. Returns when it listens.
    func serve() throws -> Process {
        let config = folder.appendingPathComponent("serve.toml")
        try """
            state = "\(folder.path)/state"
            listen = "127.0.0.1:0"
            [[federation]]
            name = "notes"
            [federation.training]
            model = "\(model)"
            sample = 1
            rounds = 2
            seq_len = 320
            steps = 3
            batch_size = 2
            lr = 1e-2
            codec = "f32"
            [federation.rounds]
            over_selection = 1.0
            check_in = "50ms"
            """.write(to: config, atomically: true, encoding: .utf8)
        let (process, output) = try start(["serve", config.path, "--json"])
        try #require(!output.availableData.isEmpty, "the server says nothing")
        return process
    }

    func invite() throws -> String {
        let told = try run("admin", "--json", "--state", "\(folder.path)/state", "invite", "--uses", "1")
        return String(try #require(told.firstMatch(of: /ft1-[a-z0-9]+/)).output)
    }
}

@Suite(.enabled(if: Program.path != nil))
struct FederationTests {
    @Test func aDeviceJoinsTrainsAndWritesWithTheSharedAdapter() async throws {
        let program = try Program()
        defer { try? FileManager.default.removeItem(at: program.folder) }
        let server = try program.serve()
        // Not `terminate`: on Linux, what Foundation starts inherits that its threads hear no signals.
        defer { kill(server.processIdentifier, SIGKILL) }
        let platform = Platform(storage: FolderStorage(program.folder.appendingPathComponent("device")))
        let fleetune = try await Fleetune.open(
            model: .file(path: program.model), platform: platform, options: OpenOptions())
        for _ in 0..<6 {
            try await fleetune.examples.add(.init(instruction: "Say 3.", response: "It is 3."))
        }
        let federation = try await fleetune.join(program.invite())
        let events = federation.events
        async let taken: Void = federation.run()
        var steps = 0
        var accepted = 0
        var last: FederationEvent?
        for await event in events {
            if case .training = event { steps += 1 }
            if case .roundDone(_, .accepted) = event { accepted += 1 }
            last = event
        }
        try await taken
        #expect(steps == 6)
        #expect(accepted == 2)
        #expect(last == .finished)
        let base = try await fleetune.generate(
            prompt: "Say 3.", options: GenerateOptions(maxTokens: 24, adapter: .base))
        let shared = try await fleetune.generate(
            prompt: "Say 3.", options: GenerateOptions(maxTokens: 24, adapter: .shared))
        #expect(base.text != shared.text)
    }

    @Test func aCodeThatIsNoneIsTold() async throws {
        let program = try Program()
        defer { try? FileManager.default.removeItem(at: program.folder) }
        let platform = Platform(storage: FolderStorage(program.folder.appendingPathComponent("device")))
        let fleetune = try await Fleetune.open(
            model: .file(path: program.model), platform: platform, options: OpenOptions())
        await #expect(throws: JoinError.self) { _ = try await fleetune.join("ft1-nonsense") }
    }
}
