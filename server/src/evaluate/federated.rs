//! The federated view: how well a model serves every client of a federation, and how evenly, before
//! and after each client adapts it to its own data with a few local steps.

use fleetune_core::data::{Template, TokenizedExample};
use fleetune_core::train::Evaluation;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::grading::Verdict;
use super::journal::{Finding, Journal, JournalError, Key};
use super::metrics::{Fairness, bootstrap, fairness, rouge_l};
use super::model::ModelError;
use super::run::{Watcher, Work};
use super::suite::{Card, Metric, Scoring, Wrapping};

/// The name under which journals and results know the view.
pub const NAME: &str = "federated";

/// The scores of a client, and whether higher is better.
const SCORES: [(&str, bool); 4] =
    [("loss", false), ("perplexity", false), ("token_accuracy", true), ("rouge_l", true)];

/// All that the view says of clients together.
const METRICS: [&str; 24] = [
    "loss",
    "loss_worst_decile",
    "loss_spread",
    "perplexity",
    "perplexity_worst_decile",
    "perplexity_spread",
    "token_accuracy",
    "token_accuracy_worst_decile",
    "token_accuracy_spread",
    "rouge_l",
    "rouge_l_worst_decile",
    "rouge_l_spread",
    "personalised_loss",
    "personalised_loss_worst_decile",
    "personalised_loss_spread",
    "personalised_perplexity",
    "personalised_perplexity_worst_decile",
    "personalised_perplexity_spread",
    "personalised_token_accuracy",
    "personalised_token_accuracy_worst_decile",
    "personalised_token_accuracy_spread",
    "personalised_rouge_l",
    "personalised_rouge_l_worst_decile",
    "personalised_rouge_l_spread",
];

/// What the view is about, as a suite.
pub fn card() -> Card {
    Card {
        name: NAME,
        family: "federation",
        about: "how well and how evenly a simulation's clients are served, before and after each adapts",
        metrics: &METRICS,
        parts: &["client"],
        data: &["those of the run that --run names"],
        scoring: Scoring::HeldOut,
        wrapping: Wrapping::In(Template::Alpaca),
        shots: (0, 0),
    }
}

/// A held-out row.
#[derive(Debug, Clone)]
pub struct HeldOut {
    /// Its text, of which the answer is scored.
    pub example: TokenizedExample,
    /// What the model reads before it answers.
    pub prompt: Vec<u32>,
    /// The answer in the data.
    pub answer: String,
}

/// The data of a client.
#[derive(Debug, Clone)]
pub struct ClientData {
    /// Its name.
    pub name: String,
    /// Rows to adapt to.
    pub train: Vec<TokenizedExample>,
    /// Rows to measure on, none of which is in `train`.
    pub held_out: Vec<HeldOut>,
}

/// A model that clients can adapt.
pub trait Adaptable {
    /// Scores texts, one evaluation a text.
    ///
    /// # Errors
    /// When the engine fails.
    fn score(&mut self, texts: &[TokenizedExample]) -> Result<Vec<Evaluation>, ModelError>;

    /// The most likely answer to a prompt, of at most `max_tokens`.
    ///
    /// # Errors
    /// When the engine fails.
    fn write(&mut self, prompts: &[&[u32]], max_tokens: usize) -> Result<Vec<String>, ModelError>;

    /// Takes one optimiser step on a batch.
    ///
    /// # Errors
    /// When the engine fails or training diverges.
    fn step(&mut self, batch: &[TokenizedExample]) -> Result<(), ModelError>;

    /// Forgets all steps.
    ///
    /// # Errors
    /// When the engine fails.
    fn reset(&mut self) -> Result<(), ModelError>;
}

/// How clients adapt and what is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct ViewOptions {
    /// Local steps of each client; 0 measures the model as it is only.
    pub steps: usize,
    /// Rows of a step.
    pub batch_size: usize,
    /// Answers that each client has written for ROUGE-L; 0 for none.
    pub answers: usize,
    /// Longest of these answers, in tokens.
    pub answer_tokens: usize,
    /// Where the chance in batches comes from.
    pub seed: u64,
    /// All else that a step depends on, in words: rate, decay, the adapter's form.
    pub training: String,
}

/// What the view found.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The numbers.
    pub metrics: Vec<Metric>,
    /// Time that measuring took, in this run or in an earlier one.
    pub seconds: f64,
}

/// The view cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FederatedError {
    /// A client has nothing to measure on, or nothing to learn from.
    #[error(
        "client {client} has no {kind} row that fits: use fewer clients, a larger --holdout or a longer --seq-len"
    )]
    NoRows {
        /// The client.
        client: String,
        /// `held-out` or `training`.
        kind: &'static str,
    },
    /// The model computes no numbers, or adapting it to a client made it so.
    #[error(
        "the {score} of client {client} is not a finite number: the weights of the model or of the adapter are damaged, or its training diverged"
    )]
    NotFinite {
        /// The client.
        client: String,
        /// What was measured.
        score: String,
    },
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The watcher asked to stop.
    #[error("stopped: clients so far are kept, and the same command goes on from there")]
    Stopped,
}

/// Measures every client and sums up.
///
/// # Errors
/// When the model or the journal fails, or on request.
pub fn view(
    clients: &[ClientData],
    model: &mut dyn Adaptable,
    options: &ViewOptions,
    journal: &mut Journal,
    watcher: &mut dyn Watcher,
) -> Result<View, FederatedError> {
    for client in clients {
        let name = || client.name.clone();
        if client.held_out.is_empty() {
            return Err(FederatedError::NoRows { client: name(), kind: "held-out" });
        }
        if client.train.is_empty() && options.steps > 0 {
            return Err(FederatedError::NoRows { client: name(), kind: "training" });
        }
    }
    let keys: Vec<Key> = clients.iter().map(|client| key(client, options)).collect();
    let done = keys.iter().filter(|key| known(journal, key).is_some()).count();
    watcher.begin(NAME, Work::Clients, clients.len(), done);
    let mut verdicts = Vec::with_capacity(clients.len());
    let mut all_seconds = 0.0;
    for (client, key) in clients.iter().zip(keys) {
        if let Some((verdict, seconds)) = known(journal, &key) {
            verdicts.push(verdict);
            all_seconds += seconds;
            continue;
        }
        if watcher.stop() {
            return Err(FederatedError::Stopped);
        }
        let start = std::time::Instant::now();
        let verdict = match measure_client(client, model, options) {
            Err(_) if watcher.stop() => return Err(FederatedError::Stopped),
            other => other?,
        };
        if let Some((score, _)) = verdict.scores.iter().find(|(_, value)| !value.is_finite()) {
            let (client, score) = (client.name.clone(), score.clone());
            return Err(FederatedError::NotFinite { client, score });
        }
        let seconds = start.elapsed().as_secs_f64();
        all_seconds += seconds;
        if let Ok(said) = serde_json::to_string(&verdict) {
            journal.add_finding(key, Finding { tool: "measurement".to_owned(), said, seconds })?;
        }
        verdicts.push(verdict);
        watcher.advance(1);
    }
    Ok(View { metrics: metrics(clients, &verdicts, options.seed), seconds: all_seconds })
}

/// A client's scores as the model is, and as the client adapts it.
fn measure_client(
    client: &ClientData,
    model: &mut dyn Adaptable,
    options: &ViewOptions,
) -> Result<Verdict, FederatedError> {
    let mut verdict = Verdict::default();
    model.reset()?;
    measure(client, model, options, "", &mut verdict)?;
    if options.steps > 0 {
        let mut random = ChaCha8Rng::seed_from_u64(options.seed);
        let mut order: Vec<usize> = Vec::new();
        for _ in 0..options.steps {
            let mut batch = Vec::with_capacity(options.batch_size);
            while batch.len() < options.batch_size.max(1) {
                let Some(row) = order.pop() else {
                    order = (0..client.train.len()).collect();
                    order.shuffle(&mut random);
                    continue;
                };
                batch.push(client.train[row].clone());
            }
            model.step(&batch)?;
        }
        measure(client, model, options, "personalised_", &mut verdict)?;
        model.reset()?;
    }
    Ok(verdict)
}

fn measure(
    client: &ClientData,
    model: &mut dyn Adaptable,
    options: &ViewOptions,
    prefix: &str,
    verdict: &mut Verdict,
) -> Result<(), FederatedError> {
    let texts: Vec<_> = client.held_out.iter().map(|row| row.example.clone()).collect();
    let mut sum = Evaluation::default();
    for evaluation in model.score(&texts)? {
        sum += evaluation;
    }
    let mut add = |name: &str, value: f64| {
        verdict.scores.insert(format!("{prefix}{name}"), value);
    };
    add("loss", sum.loss());
    add("perplexity", sum.perplexity());
    add("token_accuracy", sum.token_accuracy());
    let asked = &client.held_out[..client.held_out.len().min(options.answers)];
    if !asked.is_empty() {
        let prompts: Vec<&[u32]> = asked.iter().map(|row| row.prompt.as_slice()).collect();
        let written = model.write(&prompts, options.answer_tokens)?;
        let scores = asked.iter().zip(written).map(|(row, text)| rouge_l(&row.answer, &text).f1);
        add("rouge_l", scores.sum::<f64>() / asked.len() as f64);
    }
    Ok(())
}

/// One of the numbers that say how evenly clients are served.
type Part = fn(Fairness) -> f64;

/// Each score's mean, worst decile and spread over the clients, with what they would vary by among
/// other clients of the kind; then the clients' own.
fn metrics(clients: &[ClientData], verdicts: &[Verdict], seed: u64) -> Vec<Metric> {
    let mut metrics = Vec::new();
    let mut own = Vec::new();
    for prefix in ["", "personalised_"] {
        for (score, higher_is_better) in SCORES {
            let name = format!("{prefix}{score}");
            let values: Vec<f64> =
                verdicts.iter().filter_map(|v| v.scores.get(&name).copied()).collect();
            let sums: [(&str, Part); 3] = [
                ("", |sum| sum.mean),
                ("_worst_decile", |sum| sum.worst_decile),
                ("_spread", |sum| sum.spread),
            ];
            for (suffix, part) in sums {
                let Some(sum) = fairness(&values, higher_is_better) else { continue };
                let standard_error = bootstrap(values.len(), seed, |drawn| {
                    let drawn: Vec<f64> = drawn.map(|client| values[client]).collect();
                    fairness(&drawn, higher_is_better).map_or(0.0, part)
                });
                let (name, value) = (format!("{name}{suffix}"), part(sum));
                metrics.push(Metric {
                    name,
                    group: None,
                    value,
                    standard_error,
                    rows: values.len(),
                });
            }
            for (client, verdict) in clients.iter().zip(verdicts) {
                let Some(&value) = verdict.scores.get(&name) else { continue };
                let group = Some(format!("client:{}", client.name));
                let rows = client.held_out.len();
                own.push(Metric { name: name.clone(), group, value, standard_error: None, rows });
            }
        }
    }
    metrics.extend(own);
    metrics
}

/// What the journal knows of a client's measurement, and what that took.
fn known(journal: &Journal, key: &Key) -> Option<(Verdict, f64)> {
    let finding = journal.finding(key)?;
    Some((serde_json::from_str(&finding.said).ok()?, finding.seconds))
}

/// Names a client's measurement by everything it depends on besides the model.
fn key(client: &ClientData, options: &ViewOptions) -> Key {
    let mut hasher = Sha256::new();
    hasher.update(format!("{options:?}"));
    let texts = client.held_out.iter().map(|row| &row.example).chain(&client.train);
    for example in texts {
        hasher.update((example.ids.len() as u64).to_le_bytes());
        for (id, supervised) in example.ids.iter().zip(&example.supervised) {
            hasher.update(id.to_le_bytes());
            hasher.update([u8::from(*supervised)]);
        }
    }
    for HeldOut { prompt, answer, .. } in &client.held_out {
        hasher.update((prompt.len() as u64).to_le_bytes());
        prompt.iter().for_each(|id| hasher.update(id.to_le_bytes()));
        hasher.update((answer.len() as u64).to_le_bytes());
        hasher.update(answer);
    }
    let asked = hasher.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    Key { suite: NAME.to_owned(), id: client.name.clone(), asked }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model whose loss on a text is its first token's id, less one for every step.
    #[derive(Default)]
    struct Fake {
        steps: u32,
        scored: usize,
        broken: bool,
    }

    impl Adaptable for Fake {
        fn score(&mut self, texts: &[TokenizedExample]) -> Result<Vec<Evaluation>, ModelError> {
            self.scored += 1;
            let score = |text: &TokenizedExample| Evaluation {
                loss_sum: match self.broken {
                    true => f64::NAN,
                    false => f64::from(text.ids[0] - self.steps),
                },
                supervised_tokens: 1,
                correct_tokens: 1,
            };
            Ok(texts.iter().map(score).collect())
        }

        fn write(&mut self, prompts: &[&[u32]], _: usize) -> Result<Vec<String>, ModelError> {
            Ok(prompts.iter().map(|prompt| format!("answer {}", prompt[0])).collect())
        }

        fn step(&mut self, batch: &[TokenizedExample]) -> Result<(), ModelError> {
            assert_eq!(batch.len(), 3);
            self.steps += 1;
            Ok(())
        }

        fn reset(&mut self) -> Result<(), ModelError> {
            self.steps = 0;
            Ok(())
        }
    }

    struct Silent;

    impl Watcher for Silent {
        fn begin(&mut self, _suite: &str, _work: Work, _total: usize, _done: usize) {}
        fn advance(&mut self, _amount: usize) {}
        fn stop(&self) -> bool {
            false
        }
    }

    fn client(name: &str, loss: u32) -> ClientData {
        let example = TokenizedExample { ids: vec![loss, 0], supervised: vec![false, true] };
        let held_out =
            HeldOut { example: example.clone(), prompt: vec![7], answer: "answer 7".to_owned() };
        ClientData { name: name.to_owned(), train: vec![example], held_out: vec![held_out] }
    }

    fn options() -> ViewOptions {
        let training = "rate 0.1".to_owned();
        ViewOptions { steps: 4, batch_size: 3, answers: 1, answer_tokens: 8, seed: 0, training }
    }

    #[test]
    fn a_client_is_measured_anew_when_anything_about_it_changed() {
        let one = client("a", 10);
        let mut answer = client("a", 10);
        answer.held_out[0].answer = "another".to_owned();
        let mut prompt = client("a", 10);
        prompt.held_out[0].prompt = vec![8];
        let rate = ViewOptions { training: "rate 0.2".to_owned(), ..options() };
        let known = key(&one, &options());
        assert_eq!(known, key(&client("a", 10), &options()));
        for other in [key(&answer, &options()), key(&prompt, &options()), key(&one, &rate)] {
            assert_ne!(known, other);
        }
    }

    #[test]
    fn a_loss_that_is_no_number_is_named_and_not_kept() {
        let clients = [client("a", 10)];
        let mut model = Fake { broken: true, ..Fake::default() };
        let mut journal = Journal::in_memory();
        let error = view(&clients, &mut model, &options(), &mut journal, &mut Silent).unwrap_err();
        assert!(error.to_string().starts_with("the loss of client a is not a finite"), "{error}");
        assert!(known(&journal, &key(&clients[0], &options())).is_none());
    }

    #[test]
    fn clients_are_measured_before_and_after_their_own_steps() {
        let clients = [client("a", 10), client("b", 20)];
        let options = options();
        let mut journal = Journal::in_memory();
        let mut model = Fake::default();
        let found = view(&clients, &mut model, &options, &mut journal, &mut Silent).unwrap();
        let metrics = &found.metrics;
        let value = |name: &str, group: Option<&str>| {
            metrics.iter().find(|m| m.name == name && m.group.as_deref() == group).unwrap().value
        };
        let names = metrics.iter().map(|metric| metric.name.as_str());
        assert!(names.clone().all(|name| METRICS.contains(&name)));
        assert!(METRICS.iter().all(|name| names.clone().any(|other| other == *name)));
        assert_eq!(value("loss", None), 15.0);
        assert_eq!(value("loss_worst_decile", None), 20.0);
        assert_eq!(value("loss_spread", None), 5.0);
        assert_eq!(value("personalised_loss", None), 11.0);
        assert_eq!(value("personalised_loss", Some("client:b")), 16.0);
        assert_eq!(value("rouge_l", None), 1.0);
        // Of two clients drawn from two, half of the means are 15, the others 10 or 20.
        let error = metrics[0].standard_error.unwrap().value();
        assert!((error - 12.5f64.sqrt()).abs() < 0.2, "{error}");
        let nobody = ClientData { held_out: vec![], ..client("c", 1) };
        let error = view(&[nobody], &mut model, &options, &mut journal, &mut Silent).unwrap_err();
        assert!(error.to_string().starts_with("client c has no held-out row"), "{error}");
        // A second look measures nothing again.
        let again = view(&clients, &mut model, &options, &mut journal, &mut Silent).unwrap();
        assert!(again.seconds > 0.0, "the time of the first look counts");
        assert_eq!((again, model.scored), (found, 4));
    }
}
