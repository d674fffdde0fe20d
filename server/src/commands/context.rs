//! What every command shares: where to compute, how to speak, when to stop.

use candle_core::Device;
use clap::Args;
use fleetune_core::kernels::InstructionSet;
use serde::Serialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::CommandError;
use super::devices::DeviceList;
use crate::interrupt::Interrupt;
use crate::output::{self, OutputError};
use crate::progress::{self, LogWriter};

/// The environment variable that sets log levels, in `tracing`'s syntax.
const LOG_VARIABLE: &str = "FLEETUNE_LOG";
/// The environment variable that, set to `json`, has each log record written as a line of JSON.
const LOG_FORMAT_VARIABLE: &str = "FLEETUNE_LOG_FORMAT";

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct GlobalArgs {
    /// Write the result as JSON on stdout (logs and progress go to stderr)
    #[arg(long, global = true)]
    json: bool,
    /// Where to compute: auto, cpu, cuda, cuda:N or metal; simulate takes several: cuda:0,1,2
    #[arg(long, global = true, value_name = "DEVICE", default_value = "auto")]
    device: DeviceList,
    /// Threads to compute with [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Tell more: -v for what is done, -vv for details (FLEETUNE_LOG overrides)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Show no progress and no warnings
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
}

impl GlobalArgs {
    /// Threads to compute with; zero means one per core.
    pub fn threads(&self) -> usize {
        self.threads.map_or(0, usize::from)
    }
}

/// What a command runs with.
#[derive(Debug, Clone)]
pub struct Context {
    /// Whether the result is to be JSON on stdout.
    pub json: bool,
    /// Where to compute.
    pub devices: DeviceList,
    /// Flags that have a process started from here tell as much as this one.
    pub log_flags: Vec<String>,
}

impl Context {
    /// Sets up logging and progress of this process.
    ///
    /// # Errors
    /// When the log filter or the kernels asked for cannot be had.
    pub fn new(args: &GlobalArgs) -> Result<Self, CommandError> {
        progress::set_quiet(args.quiet);
        start_logging(args)?;
        InstructionSet::from_environment().map_err(CommandError::usage)?;
        let quiet = args.quiet.then(|| "--quiet".to_owned());
        let verbose = std::iter::repeat_n("--verbose".to_owned(), args.verbose.into());
        let log_flags = quiet.into_iter().chain(verbose).collect();
        Ok(Self { json: args.json, devices: args.device.clone(), log_flags })
    }

    /// Opens the device asked for, the first where there are several.
    ///
    /// # Errors
    /// A usage error where this build or machine does not have it.
    pub fn open_device(&self) -> Result<Device, CommandError> {
        self.devices.first().open().map_err(CommandError::usage)
    }

    /// The flag of Ctrl-C. A command that asks for it must look at it between its steps.
    pub fn interrupt(&self) -> Interrupt {
        Interrupt::listen()
    }

    /// Writes the result: JSON where asked for, else the text that `text` makes.
    ///
    /// # Errors
    /// When stdout does not take it.
    pub fn result(
        &self,
        value: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), OutputError> {
        if self.json { output::json(value) } else { output::line(text()) }
    }
}

fn start_logging(args: &GlobalArgs) -> Result<(), CommandError> {
    let level = match (args.quiet, args.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, 2) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    };
    let filter = match std::env::var(LOG_VARIABLE) {
        Ok(text) => EnvFilter::try_new(&text).map_err(|error| {
            CommandError::Usage(format!(
                "{LOG_VARIABLE}={text} is no log filter ({error}): use for example info or fleetune_core=debug"
            ))
        })?,
        // Only our own crates get louder: the HTTP client's details help nobody here.
        Err(_) => EnvFilter::new(format!("warn,fleetune_core={level},fleetune_server={level}"))
            .add_directive(level.min(LevelFilter::WARN).into()),
    };
    let records = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(LogWriter::default)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    let json = std::env::var_os(LOG_FORMAT_VARIABLE).is_some_and(|format| format == "json");
    let started = if json { records.json().try_init() } else { records.try_init() };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))?;
    Ok(())
}
