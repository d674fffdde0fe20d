//! The command line: one file per command.
//!
//! A command is a struct of arguments (`#[derive(clap::Args)]`, with an example in its
//! `after_help`) and `pub fn run(args, ctx: &Context) -> CommandResult`. To add one: its module, a
//! variant of [`Command`], an arm in [`dispatch`].

pub mod admin;
pub mod aggregate;
pub mod bench;
mod context;
pub mod data;
mod devices;
pub mod engine;
mod error;
pub mod eval;
mod evaluator;
pub mod export;
pub mod generate;
pub mod join;
pub mod model;
mod questions;
mod rows;
pub mod serve;
pub mod simulate;
pub mod train;
mod values;

use std::panic;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use fleetune_core::kernels::Threads;

use crate::evaluate::sandbox::confined_main;

pub use context::{Context, GlobalArgs};
pub use error::{CommandError, CommandResult};

/// Federated fine-tuning of language models, where the private text never leaves the device.
#[derive(Debug, Parser)]
#[command(
    name = "fleetune",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    args_override_self = true,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.\n\n\
                  Example:\n  fleetune model pull smollm2-135m-instruct"
)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
// One is made in the life of a process.
#[allow(clippy::large_enum_variant)]
enum Command {
    /// Make one adapter of many clients' adapters
    Aggregate(aggregate::AggregateArgs),
    /// Write an adapter, or a model with it folded in, for other programs
    Export(export::ExportArgs),
    /// Measure what a model knows and how well it answers
    Eval(eval::EvalArgs),
    /// Bring models into the cache and show what they hold
    Model(model::ModelArgs),
    /// Bring data sets from the hub and list them
    Data(data::DataArgs),
    /// Fine-tune an adapter on this device
    Train(train::TrainArgs),
    /// Measure this machine: training and matrix products
    Bench(bench::BenchArgs),
    /// Write text with a model and an adapter
    Generate(generate::GenerateArgs),
    /// Take part in a federation: a device without a screen
    Join(join::JoinArgs),
    /// Serve federations to devices over QUIC
    Serve(serve::ServeArgs),
    /// The operator's commands: invite, devices, revoke, status, pause, resume, rollback
    Admin(admin::AdminArgs),
    /// Train a whole federation in one process and compare what algorithms make of it
    Simulate(simulate::SimulateArgs),
    /// What `simulate` starts for each further device; it takes its orders from there
    #[command(hide = true)]
    SimulateWorker,
}

fn dispatch(command: Command, ctx: &Context) -> CommandResult {
    if !matches!(command, Command::Simulate(_)) {
        ctx.devices.check_single().map_err(CommandError::usage)?;
    }
    match command {
        Command::Aggregate(args) => aggregate::run(args, ctx),
        Command::Export(args) => export::run(args, ctx),
        Command::Eval(args) => eval::run(args, ctx),
        Command::Model(args) => model::run(args, ctx),
        Command::Data(args) => data::run(args, ctx),
        Command::Train(args) => train::run(args, ctx),
        Command::Bench(args) => bench::run(args, ctx),
        Command::Generate(args) => generate::run(args, ctx),
        Command::Join(args) => join::run(args, ctx),
        Command::Serve(args) => serve::run(args, ctx),
        Command::Admin(args) => admin::run(args, ctx),
        Command::Simulate(args) => simulate::run(args, ctx),
        Command::SimulateWorker => simulate::worker::run(ctx),
    }
}

/// The same command, where a flag takes `-1` for its value, to say itself what it needs.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let takes_them = |arg: clap::Arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    command.mut_args(takes_them).mut_subcommands(with_negative_numbers)
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // Before anything else: the launcher must have one thread only.
    if let Some(code) = confined_main() {
        return code;
    }
    error::report_panics();
    let matches = with_negative_numbers(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let outcome = panic::catch_unwind(|| {
        let ctx = Context::new(&cli.global)?;
        // On a thread of the pool: called from outside, every kernel would wake the pool and wait.
        let threads = Threads::new(cli.global.threads())?;
        threads.run(|| dispatch(cli.command, &ctx))
    });
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => error.report(),
        // The hook has told of it.
        Err(_) => ExitCode::from(error::FAILED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(command: &clap::Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains("Example"), "{path} --help has no example");
        assert!(help.contains(path.trim()), "the example of {path} does not show it");
        for line in help.lines() {
            assert!(line.len() <= 100, "copying from {path} --help breaks: {line}");
        }
        assert!(command.get_about().is_some(), "{path} does not say what it does");
        let shown = |c: &&clap::Command| c.get_name() != "help" && !c.is_hide_set();
        let parts = command.get_subcommands().filter(shown);
        parts.for_each(|part| check(part, &path));
    }

    #[test]
    fn every_command_explains_itself_with_an_example() {
        let cli = Cli::command();
        with_negative_numbers(cli.clone()).debug_assert();
        check(&cli, "");
    }
}
