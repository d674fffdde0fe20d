import Foundation
import Testing

@testable import Fleetune

/// What needs neither a model nor a device.
struct DeviceTests {
    @Test func aModelThatIsNoneIsTold() async throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        let wrong = folder.appendingPathComponent("wrong.gguf")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try Data("GGUF and then nonsense".utf8).write(to: wrong)
        let platform = Platform(storage: FolderStorage(folder))
        await #expect(throws: OpenError.self) {
            _ = try await Fleetune.open(model: .file(wrong), platform: platform, options: OpenOptions())
        }
    }

    @Test func requirementsAreThoseOfTheBackground() {
        #expect(backgroundRequirements() == Requirements())
    }
}

/// The sentences of the other languages' end-to-end tests, on a model that `FLEETUNE_MODEL` names.
@Suite(.enabled(if: ProcessInfo.processInfo.environment["FLEETUNE_MODEL"] != nil))
struct ModelTests {
    private func open() async throws -> Fleetune {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        let path = try #require(ProcessInfo.processInfo.environment["FLEETUNE_MODEL"])
        let platform = Platform(storage: FolderStorage(folder))
        return try await Fleetune.open(
            model: .file(path: path), platform: platform, options: OpenOptions())
    }

    @Test func textComesInPiecesThatMakeTheWhole() async throws {
        let fleetune = try await open()
        let options = GenerateOptions(maxTokens: 20)
        var pieces = ""
        for try await piece in fleetune.generate("Hello", options: options) { pieces += piece }
        let whole = try await fleetune.generate(prompt: "Hello", options: options)
        #expect(pieces == whole.text)
    }

    @Test func examplesAreLearntAndErased() async throws {
        let fleetune = try await open()
        for _ in 0..<4 {
            try await fleetune.examples.add(.init(instruction: "Say 3.", response: "It is 3."))
        }
        let report = try await fleetune.train(TrainOptions(steps: 4, learningRate: 1e-2))
        #expect(report.lastLoss < report.firstLoss)
        try await fleetune.examples.eraseAll()
        #expect(try await fleetune.examples.count() == 0)
    }
}
