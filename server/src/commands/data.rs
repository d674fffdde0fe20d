//! `fleetune data`: the data sets of this machine.

mod tokens;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use fleetune_core::data::{DataSource, Dataset, NAMED_SETS};
use serde::Serialize;

use super::{CommandError, CommandResult, Context};
use crate::hub::{Cache, Client, PULLABLE_SETS, PulledFile, pull_dataset};

/// Arguments of `fleetune data`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, after_help = "Example:\n  fleetune data pull gsm8k")]
pub struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    /// Bring a data set from the Hugging Face hub
    ///
    /// Data sets have licences of their own, some of them not for commercial use: see their pages
    /// on the hub. HF_ENDPOINT names a mirror, FLEETUNE_ROWS_ENDPOINT one of the server of rows.
    #[command(after_help = "Examples:\n  fleetune data pull gsm8k\n  \
        fleetune data pull alpaca --data-dir data")]
    Pull(PullArgs),
    /// List the data sets known by name, and whether their rows are here
    #[command(after_help = "Example:\n  fleetune data list --data-dir data")]
    List(ListArgs),
    /// Write rows as training reads them: token ids, and which of them are learnt
    #[command(
        after_help = "Example:\n  fleetune data tokens --dataset demo --limit 5 --out rows.jsonl"
    )]
    Tokens(tokens::TokensArgs),
}

#[derive(Debug, Args)]
struct PullArgs {
    /// The data set's name (`fleetune data list`)
    name: String,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Read every row and count them
    #[arg(long)]
    count: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
struct Place {
    /// Folder that holds the data sets [default: the cache]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Place {
    fn folder(&self) -> Result<PathBuf, CommandError> {
        match &self.data_dir {
            Some(folder) => Ok(folder.clone()),
            None => Ok(Cache::of_user()?.data()),
        }
    }
}

/// Runs `fleetune data`.
///
/// # Errors
/// When a data set cannot be brought, or stdout is gone.
pub fn run(args: DataArgs, ctx: &Context) -> CommandResult {
    match args.command {
        DataCommand::Pull(args) => pull(&args, ctx),
        DataCommand::List(args) => list(&args, ctx),
        DataCommand::Tokens(args) => tokens::run(&args, ctx),
    }
}

fn pull(args: &PullArgs, ctx: &Context) -> CommandResult {
    let client = Client::from_environment(ctx.interrupt())?;
    let files = pull_dataset(&client, &args.place.folder()?, &args.name)?;
    let line = |file: &PulledFile| match file.rows {
        Some(rows) => format!("{}: {rows} rows", file.path.display()),
        None => format!("{}: was there already", file.path.display()),
    };
    Ok(ctx.result(&files, || files.iter().map(line).collect::<Vec<_>>().join("\n"))?)
}

/// A data set in a list.
#[derive(Debug, Serialize)]
struct Listed {
    name: &'static str,
    description: &'static str,
    /// Whether its rows are preference pairs.
    preference: bool,
    /// Whether `data pull` brings it.
    pullable: bool,
    /// Whether its rows are here.
    here: bool,
    /// How many they are, where they were counted.
    rows: Option<usize>,
}

fn list(args: &ListArgs, ctx: &Context) -> CommandResult {
    let folder = args.place.folder()?;
    let listed: Vec<_> =
        NAMED_SETS.iter().map(|set| look_up(set.name, &folder, args.count)).collect();
    Ok(ctx.result(&listed, || table(&listed, &folder))?)
}

fn look_up(name: &'static str, folder: &Path, count: bool) -> Listed {
    let set = NAMED_SETS.iter().find(|set| set.name == name);
    let source = DataSource { data_dir: Some(folder.to_owned()), ..DataSource::default() };
    let rows =
        count.then(|| Dataset::open(name, &source, None).map(|set| set.len()).ok()).flatten();
    Listed {
        name,
        description: set.map_or("", |set| set.description),
        preference: set.is_some_and(|set| set.preference),
        pullable: PULLABLE_SETS.iter().any(|set| set.name == name),
        here: set.is_some_and(|set| set.is_here(folder)),
        rows,
    }
}

fn table(listed: &[Listed], folder: &Path) -> String {
    let width = listed.iter().map(|set| set.name.len()).max().unwrap_or(0);
    let mut lines = vec![format!("in {}:", folder.display())];
    for set in listed {
        let state = match (set.here, set.pullable, set.rows) {
            (_, _, Some(rows)) => format!("{rows} rows"),
            (true, ..) => "here".to_owned(),
            (false, true, _) => "pull".to_owned(),
            (false, false, _) => "-".to_owned(),
        };
        lines.push(format!("{:width$}  {state:>10}  {}", set.name, set.description));
    }
    lines.join("\n")
}
