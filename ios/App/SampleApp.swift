import Fleetune
import SwiftUI

/// One screen: join, examples, train now, progress, erase. The model is a GGUF file in the app's
/// bundle, `model.gguf`; `Info.plist` lists `org.fleetune.training` as a background task.
@main
struct SampleApp: App {
    @State private var learner = Learner()

    init() {
        let learner = learner
        BackgroundTraining.register { try await learner.opened() }
    }

    var body: some Scene {
        WindowGroup { ContentView(learner: learner) }
    }
}

/// The app's one instance of the library.
@MainActor
@Observable
final class Learner {
    var progress = ""
    private let conditions = AppleConditions()
    private var fleetune: Fleetune?

    func opened() async throws -> (Fleetune, AppleConditions) {
        if let fleetune { return (fleetune, conditions) }
        guard let model = Bundle.main.url(forResource: "model", withExtension: "gguf") else {
            throw CocoaError(.fileNoSuchFile)
        }
        let opened = try await Fleetune.open(model: .file(model), conditions: conditions)
        fleetune = opened
        return (opened, conditions)
    }

    func act(_ work: @escaping @MainActor (Fleetune) async throws -> Void) {
        Task {
            do {
                try await work(opened().0)
            } catch {
                progress = error.localizedDescription
            }
        }
    }

    func join(_ code: String) {
        act { fleetune in
            let federation = try await fleetune.join(code)
            BackgroundTraining.schedule()
            self.progress = "Joined as \(federation.device())"
        }
    }

    func keep(_ instruction: String, _ response: String) {
        act { fleetune in
            try await fleetune.examples.add(.init(instruction: instruction, response: response))
            self.progress = "\(try await fleetune.examples.count()) examples"
        }
    }

    func write(_ prompt: String) {
        act { fleetune in
            self.progress = ""
            for try await piece in fleetune.generate(prompt) { self.progress += piece }
        }
    }

    /// The user asks for it and is looking: neither charging nor idleness is needed.
    func trainNow() {
        act { fleetune in
            guard let federation = try fleetune.federation() else {
                self.progress = "Join a federation first"
                return
            }
            let shown = Task {
                for await event in federation.events { self.progress = "\(event)" }
            }
            defer { shown.cancel() }
            try await federation.run(
                requirements: Requirements(charging: false, idle: false), rounds: 1)
        }
    }

    func erase() {
        act { fleetune in
            try await fleetune.examples.eraseAll()
            self.progress = "No examples"
        }
    }
}

struct ContentView: View {
    let learner: Learner
    @State private var code = ""
    @State private var instruction = ""
    @State private var response = ""

    var body: some View {
        Form {
            Section("Federation") {
                TextField("Join code", text: $code)
                Button("Join") { learner.join(code) }
                Button("Train now") { learner.trainNow() }
            }
            Section("Examples") {
                TextField("Instruction", text: $instruction)
                TextField("The answer you would have liked", text: $response)
                Button("Keep as an example") { learner.keep(instruction, response) }
                Button("Write") { learner.write(instruction) }
                Button("Erase all examples", role: .destructive) { learner.erase() }
            }
            Section("Progress") { Text(learner.progress) }
        }
    }
}
