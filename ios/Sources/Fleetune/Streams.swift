import Foundation

extension ModelSource {
    /// A GGUF file or a Hugging Face folder.
    public static func file(_ url: URL) -> ModelSource {
        .file(path: url.path)
    }
}

extension Examples {
    /// Keeps an example and tells its number. The oldest ones go where there is no room.
    @discardableResult
    public func add(_ example: Example) async throws -> Int64 {
        try await add(example: example)
    }
}

extension Fleetune {
    /// Joins the federation of a join code: enrols this device once, and remembers.
    public func join(_ code: String) async throws -> Federation {
        try await join(code: code)
    }

    /// The private store of examples: they stay on this device until they are erased.
    public var examples: Examples {
        exampleStore()
    }

    /// Answers `prompt`, piece by piece. Whoever stops iterating ends the writing with the next piece.
    public func generate(
        _ prompt: String,
        options: GenerateOptions = GenerateOptions()
    ) -> AsyncThrowingStream<String, any Error> {
        AsyncThrowingStream { continuation in
            let listener = TokenSink(continuation: continuation)
            Task {
                do {
                    _ = try await self.generate(prompt: prompt, options: options, listener: listener)
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
        }
    }

    /// Trains on this device's examples. `onStep` hears of each step, on a thread of the library.
    /// Cancelling the task ends the work of this instance within a layer's time.
    public func train(
        _ options: TrainOptions = TrainOptions(),
        onStep: @escaping @Sendable (TrainStep) -> Void = { _ in }
    ) async throws -> TrainReport {
        try await withTaskCancellationHandler {
            try await train(options: options, listener: StepSink(hear: onStep))
        } onCancel: {
            cancel()
        }
    }
}

extension Federation {
    /// What happens while this device takes part; ends when the federation does.
    public var events: AsyncStream<FederationEvent> {
        AsyncStream { continuation in
            let subscription = subscribe(listener: EventSink(continuation: continuation))
            continuation.onTermination = { _ in subscription.cancel() }
        }
    }

    /// Takes part while the device meets the requirements. Cancelling the task stops it within a
    /// layer's time; what was begun goes on the next time.
    public func run(
        requirements: Requirements = Requirements(),
        rounds: UInt32? = nil
    ) async throws {
        try await withTaskCancellationHandler {
            try await takePart(options: TakePartOptions(requirements: requirements, rounds: rounds))
        } onCancel: {
            stop()
        }
    }
}

/// Keeps everything in one folder.
public final class FolderStorage: StorageLocation {
    private let url: URL

    public init(_ url: URL) {
        self.url = url
    }

    public func folder() throws -> String {
        url.path
    }
}

private final class TokenSink: TokenListener {
    let continuation: AsyncThrowingStream<String, any Error>.Continuation

    init(continuation: AsyncThrowingStream<String, any Error>.Continuation) {
        self.continuation = continuation
    }

    func onText(piece: String) throws {
        if case .terminated = continuation.yield(piece) {
            throw PlatformError.Failed(reason: "nobody listens any more")
        }
    }
}

private final class StepSink: TrainListener {
    let hear: @Sendable (TrainStep) -> Void

    init(hear: @escaping @Sendable (TrainStep) -> Void) {
        self.hear = hear
    }

    func onStep(step: TrainStep) throws {
        hear(step)
    }
}

private final class EventSink: FederationListener {
    let continuation: AsyncStream<FederationEvent>.Continuation

    init(continuation: AsyncStream<FederationEvent>.Continuation) {
        self.continuation = continuation
    }

    func onEvent(event: FederationEvent) throws {
        continuation.yield(event)
        if case .finished = event {
            continuation.finish()
        }
    }
}
