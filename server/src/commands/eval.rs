//! `fleetune eval`: suites of questions for a model with or without an adapter.

mod federated;
pub(super) mod tools;

use std::collections::HashSet;
use std::convert::Infallible;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use data_encoding::HEXLOWER;
use fleetune_core::adapter::{Adapter, TENSORS_FILE};
use fleetune_core::model::{Decoder, LoadedModel};
use sha2::{Digest, Sha256};

use self::tools::{JUDGE_ATTEMPTS, JudgeChoice};
use super::engine::{Engine, EngineArgs, load_adapter};
use super::{CommandError, CommandResult, Context, values};
use crate::evaluate::data::DataFolder;
use crate::evaluate::engine::{Applied, EngineModel};
use crate::evaluate::federated as federated_view;
use crate::evaluate::grading::Tools;
use crate::evaluate::journal::Journal;
use crate::evaluate::model::LanguageModel;
use crate::evaluate::result::{EvaluationResult, page, table};
use crate::evaluate::run::{self, Plan, RunError, Watcher, Work};
use crate::evaluate::suite::{Card, Scoring, Wrapping};
use crate::evaluate::suites;
use crate::interrupt::Interrupt;
use crate::progress::{Progress, Unit, note};

/// Names of metrics in one line of the list.
const NAMES_A_LINE: usize = 6;

/// Arguments of `fleetune eval`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    fleetune eval --list\n  \
    fleetune eval --suite fpb,mmlu --data-dir data --limit 200 --out eval.json\n  \
    fleetune eval --adapter runs/demo/final --suite mt-bench --data-dir data \\\n      \
    --judge-url http://localhost:8000/v1 --judge-model gpt-4\n\n\
    --out FILE.json is written with a page to read (FILE.html) and a journal of all answers\n\
    (FILE.journal.jsonl). A run that was stopped goes on when the same command is run again.\n\
    The judge's key is taken from FLEETUNE_JUDGE_KEY or OPENAI_API_KEY.")]
pub struct EvalArgs {
    /// Show every suite with its metrics and its data, and end
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    engine: EngineArgs,
    /// Adapter to apply, a PEFT folder
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Suites, families of suites (finance, medicine, general, mathematics, code, open-ended), all,
    /// or federated: how a simulation's clients fare (needs --run)
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = suite_name,
        required_unless_present = "list")]
    suite: Vec<String>,
    /// Folder of the data sets: <set>/<file>.jsonl.zst
    #[arg(long, value_name = "DIR", required_unless_present_any = ["list", "run"])]
    data_dir: Option<PathBuf>,
    /// Folder of a simulation: texts it trained on are not asked about, and the suite federated
    /// measures its clients
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Questions to ask of each suite at most, a seeded sample; held-out rows of each client
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Examples in prompts [default: each suite's own number]
    #[arg(long, value_name = "N")]
    shots: Option<usize>,
    /// Wrap prompts in this template [default: each suite's own way]
    #[arg(long, value_name = "NAME", value_parser = ["plain", "alpaca", "vicuna", "chat"])]
    template: Option<String>,
    /// Answer multiple-choice questions by the likeliest option, or in writing
    #[arg(long, value_name = "HOW")]
    scoring: Option<ScoringChoice>,
    /// Programs to draw for each programming problem, for pass@k
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    samples: u16,
    /// Chance in programs [default: 0 for one program, 0.8 for more]
    #[arg(long, value_name = "T", value_parser = values::not_negative)]
    temperature: Option<f64>,
    /// Seed of samples and of chance in answers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Judge open-ended answers by this endpoint of OpenAI's interface
    #[arg(long, value_name = "URL", requires = "judge_model")]
    judge_url: Option<String>,
    /// The endpoint's model; without --judge-url a local model to judge with
    #[arg(long, value_name = "NAME")]
    judge_model: Option<String>,
    /// How often to ask a failing judge before giving up
    #[arg(long, value_name = "N", default_value_t = JUDGE_ATTEMPTS, value_parser = clap::value_parser!(u32).range(1..))]
    judge_attempts: u32,
    /// Run programs that the model wrote even where they cannot be confined: they can then reach the
    /// network and all of your files
    #[arg(long)]
    allow_unsandboxed: bool,
    /// Write the result here, with a page and a journal beside it
    #[arg(long, value_name = "FILE.json")]
    out: Option<PathBuf>,
    #[command(flatten)]
    federated: federated::FederatedArgs,
}

fn suite_name(text: &str) -> Result<String, Infallible> {
    Ok(text.trim().to_owned())
}

/// How multiple-choice questions are answered.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScoringChoice {
    /// By the likeliest option
    Loglikelihood,
    /// By what the model writes
    Generation,
}

/// Runs `fleetune eval`.
///
/// # Errors
/// When model, adapter, data or judge cannot be used, or on Ctrl-C.
pub fn run(mut args: EvalArgs, ctx: &Context) -> CommandResult {
    if args.list {
        return list(ctx);
    }
    let files = args.out.as_deref().map(Files::new).transpose()?;
    let interrupt = ctx.interrupt();
    let simulation = args.run.as_deref().map(federated::Simulation::open).transpose()?;
    let wants_view = args.suite.iter().any(|name| name == federated_view::NAME);
    if wants_view && simulation.is_none() {
        return Err(CommandError::Usage(
            "the suite federated needs --run, the folder of a simulation".to_owned(),
        ));
    }
    let asked_otherwise = args.template.is_some() || args.shots.is_some() || args.scoring.is_some();
    if wants_view && args.suite.len() == 1 && asked_otherwise {
        return Err(CommandError::Usage(
            "the suite federated asks as the run trains: --template, --shots and --scoring are for \
             other suites"
                .to_owned(),
        ));
    }
    if let Some(simulation) = &simulation {
        args.engine.model = Some(simulation.model(args.engine.model.as_deref()));
    }
    let plan = plan(&args, simulation.as_ref())?;
    // Before the model is loaded: a machine without a sandbox should say so at once.
    let programs = tools::programs(&plan.suites, args.allow_unsandboxed)?;
    let judge = JudgeChoice {
        model: args.judge_model.as_deref(),
        url: args.judge_url.as_deref(),
        attempts: args.judge_attempts,
        precision: args.engine.precision,
    };
    let mut tools = Tools { programs, judge: tools::judge(&judge, ctx)? };
    let opened = Opened::new(&args.engine, args.adapter.as_deref(), ctx)?;
    let mut model = opened.language_model(&interrupt)?;
    let mut journal = match &files {
        Some(files) => {
            files.make_folder()?;
            Journal::open(&files.journal, &model.identity())?
        }
        None => Journal::in_memory(),
    };
    let mut watcher = Bars { progress: None, interrupt };
    let outcome = run::run(&plan, &mut model, &mut tools, &mut journal, &mut watcher);
    watcher.finish();
    let mut result = match outcome {
        Ok(result) => result,
        Err(RunError::Stopped) => return Err(CommandError::Interrupted(stopped(files.as_ref()))),
        Err(error) if error.is_missing_data() => {
            let hint = "point --data-dir at the folder that holds it";
            return Err(anyhow::anyhow!("{error}: {hint}").into());
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(simulation) = simulation.filter(|_| wants_view) {
        let suite =
            simulation.view(&args.federated, plan.limit, &opened, &mut journal, &mut watcher);
        watcher.finish();
        let suite = suite.map_err(|error| match error {
            federated::ViewError::Stopped => CommandError::Interrupted(stopped(files.as_ref())),
            federated::ViewError::Other(error) => error,
        })?;
        result.seconds += suite.seconds;
        result.suites.push(suite);
    }
    if let Some(files) = &files {
        files.write(&result)?;
        note(format!(
            "{} holds the result, {} shows it",
            files.json.display(),
            files.page.display()
        ));
    }
    ctx.result(&result, || table(&result))?;
    match result.unfinished.first() {
        Some(unfinished) => {
            Err(anyhow::anyhow!("{unfinished}; {}", stopped(files.as_ref())).into())
        }
        None => Ok(()),
    }
}

fn list(ctx: &Context) -> CommandResult {
    let mut cards: Vec<Card> = suites::all().iter().map(|suite| suite.card()).collect();
    cards.push(federated_view::card());
    ctx.result(&cards, || {
        let width = cards.iter().map(|card| card.name.len()).max().unwrap_or(0);
        let mut lines = Vec::new();
        let mut family = "";
        for card in &cards {
            if card.family != family {
                family = card.family;
                lines.push(format!("{family}:"));
            }
            lines.push(format!("  {:width$}  {}", card.name, card.about));
            lines.extend(listed("metrics", card.metrics).map(|l| format!("  {:width$}  {l}", "")));
            if !card.parts.is_empty() {
                lines.push(format!("  {:width$}  of each: {}", "", card.parts.join(", ")));
            }
            lines.push(format!("  {:width$}  data: {}", "", card.data.join(", ")));
        }
        lines.join("\n")
    })?;
    Ok(())
}

/// A title and names, a few to a line.
fn listed(title: &'static str, names: &'static [&'static str]) -> impl Iterator<Item = String> {
    names.chunks(NAMES_A_LINE).enumerate().map(move |(number, some)| {
        let blank = " ".repeat(title.len() + 1);
        let before = if number == 0 { format!("{title}:") } else { blank };
        let more = if (number + 1) * NAMES_A_LINE < names.len() { "," } else { "" };
        format!("{before} {}{more}", some.join(", "))
    })
}

fn plan(args: &EvalArgs, simulation: Option<&federated::Simulation>) -> Result<Plan, CommandError> {
    let names: Vec<String> =
        args.suite.iter().filter(|name| *name != federated_view::NAME).cloned().collect();
    let folder = args.data_dir.clone().unwrap_or_default();
    if !names.is_empty() && !folder.is_dir() {
        let folder = folder.display();
        return Err(CommandError::Usage(format!("--data-dir {folder:?} is no folder")));
    }
    if args.samples > 1 && args.temperature == Some(0.0) {
        tracing::warn!("without chance all {} programs of a problem are the same", args.samples);
    }
    let wrapping = args.template.as_deref().map(str::parse::<Wrapping>).transpose();
    let suites = suites::named(&names).map_err(CommandError::usage)?;
    Ok(Plan {
        suites,
        data: DataFolder::new(folder),
        limit: args.limit.map(|limit| limit as usize),
        shots: args.shots,
        seed: args.seed,
        wrapping: wrapping.map_err(CommandError::usage)?,
        scoring: args.scoring.map(|scoring| match scoring {
            ScoringChoice::Loglikelihood => Scoring::LogLikelihood,
            ScoringChoice::Generation => Scoring::Generation,
        }),
        samples: args.samples.into(),
        temperature: args.temperature,
        seen: match simulation.filter(|_| !names.is_empty()) {
            Some(simulation) => simulation.training_texts()?,
            None => HashSet::new(),
        },
    })
}

/// A model, and perhaps an adapter, ready to be asked.
struct Opened {
    name: String,
    model: Arc<LoadedModel>,
    decoder: Arc<Decoder>,
    adapter: Option<OpenedAdapter>,
}

/// An adapter from a folder.
struct OpenedAdapter {
    name: String,
    sha256: String,
    adapter: Adapter,
}

impl Opened {
    fn new(args: &EngineArgs, adapter: Option<&Path>, ctx: &Context) -> Result<Self, CommandError> {
        let engine = args.open(ctx)?;
        let adapter = adapter.map(|folder| OpenedAdapter::new(&engine, folder)).transpose()?;
        let Engine { model, decoder } = engine;
        let name = args.model().to_owned();
        Ok(Self { name, model: Arc::new(model), decoder: Arc::new(decoder), adapter })
    }

    fn language_model(&self, interrupt: &Interrupt) -> Result<EngineModel, CommandError> {
        let applied = self.adapter.as_ref().map(|opened| Applied {
            name: opened.name.clone(),
            sha256: opened.sha256.clone(),
            adapter: &opened.adapter,
        });
        let (model, decoder) = (Arc::clone(&self.model), Arc::clone(&self.decoder));
        Ok(EngineModel::new(&self.name, model, decoder, applied, interrupt.cancel_token())?)
    }
}

impl OpenedAdapter {
    fn new(engine: &Engine, folder: &Path) -> Result<Self, CommandError> {
        let adapter = load_adapter(&engine.model, folder)?;
        let file = folder.join(TENSORS_FILE);
        let bytes = std::fs::read(&file);
        let bytes = bytes.with_context(|| format!("cannot read {}", file.display()))?;
        let sha256 = HEXLOWER.encode(&Sha256::digest(bytes));
        Ok(Self { name: folder.display().to_string(), sha256, adapter })
    }
}

fn stopped(files: Option<&Files>) -> String {
    match files {
        Some(files) => {
            format!(
                "answers so far are in {}: run the same command again to go on",
                files.journal.display()
            )
        }
        None => "nothing was kept; with --out FILE.json a run can go on later".to_owned(),
    }
}

/// The files of a run.
struct Files {
    json: PathBuf,
    page: PathBuf,
    journal: PathBuf,
}

impl Files {
    /// # Errors
    /// When the name does not end in `.json`: others may be the page's own, or share it.
    fn new(out: &Path) -> Result<Self, CommandError> {
        if out.extension().is_none_or(|ending| ending != "json") || out.is_dir() {
            return Err(CommandError::Usage(format!(
                "--out {} is no name of a result: name a file that ends in .json",
                out.display()
            )));
        }
        let beside = |ending: &str| {
            let mut name = OsString::from(out.file_stem().unwrap_or(out.as_os_str()));
            name.push(ending);
            out.with_file_name(name)
        };
        let (page, journal) = (beside(".html"), beside(".journal.jsonl"));
        Ok(Self { json: out.to_owned(), page, journal })
    }

    fn make_folder(&self) -> anyhow::Result<()> {
        let folder = self.json.parent().filter(|folder| !folder.as_os_str().is_empty());
        folder.map_or(Ok(()), |folder| {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))
        })
    }

    fn write(&self, result: &EvaluationResult) -> anyhow::Result<()> {
        let name = self.journal.file_name().unwrap_or_default().to_string_lossy();
        let json = serde_json::to_string_pretty(result)? + "\n";
        for (path, content) in [(&self.json, json), (&self.page, page(result, &name))] {
            std::fs::write(path, content)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Shows how far the run has come.
struct Bars {
    progress: Option<Progress>,
    interrupt: Interrupt,
}

impl Bars {
    fn finish(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.finish();
        }
    }
}

impl Watcher for Bars {
    fn begin(&mut self, suite: &str, work: Work, total: usize, done: usize) {
        self.finish();
        let progress = Progress::new(suite, Some(total as u64), Unit::Items(work.name()));
        progress.resume_at(done as u64);
        self.progress = Some(progress);
    }

    fn advance(&mut self, amount: usize) {
        if let Some(progress) = &self.progress {
            progress.advance(amount as u64);
        }
    }

    fn stop(&self) -> bool {
        self.interrupt.is_set()
    }
}
