//! How a command ends when it does not succeed.

use std::io::Write;
use std::panic::{self, PanicHookInfo};
use std::process::ExitCode;

use fleetune_core::data::DatasetError;

use crate::hub::HubError;
use crate::interrupt;
use crate::operator::OperatorError;
use crate::output::OutputError;
use crate::progress;

/// Exit code of work that failed.
pub const FAILED: u8 = 1;
/// Exit code of wrong usage or configuration, as clap's.
const USAGE: u8 = 2;

/// Why a command did not succeed. `?` turns errors into [`CommandError::Failed`], except those
/// that are known to be the user's choice of words or the user's Ctrl-C.
#[derive(Debug)]
pub enum CommandError {
    /// The user asked for something that makes no sense: flags, a configuration file.
    Usage(String),
    /// The work failed.
    Failed(anyhow::Error),
    /// The user interrupted the work; the words say what is kept and how to go on.
    Interrupted(String),
}

/// What every command returns.
pub type CommandResult = Result<(), CommandError>;

impl<E: Into<anyhow::Error>> From<E> for CommandError {
    fn from(error: E) -> Self {
        let error = error.into();
        match error.downcast_ref::<HubError>() {
            Some(HubError::Name(_)) => return Self::Usage(describe(&error)),
            Some(HubError::Interrupted) => return Self::Interrupted(describe(&error)),
            _ => {}
        }
        if error.downcast_ref::<OperatorError>().is_some_and(OperatorError::is_usage) {
            return Self::Usage(describe(&error));
        }
        match error.downcast_ref::<DatasetError>() {
            // Files that are at fault.
            Some(
                DatasetError::Read(_) | DatasetError::Row { .. } | DatasetError::Changed { .. },
            )
            | None => Self::Failed(error),
            Some(_) => Self::Usage(describe(&error)),
        }
    }
}

impl CommandError {
    /// An error of usage or configuration (exit code 2).
    pub fn usage(error: impl std::fmt::Display) -> Self {
        Self::Usage(error.to_string())
    }

    /// What a user is told.
    pub fn text(&self) -> String {
        match self {
            Self::Usage(text) | Self::Interrupted(text) => text.clone(),
            Self::Failed(error) => describe(error),
        }
    }

    /// Tells the user and gives the process's exit code.
    pub fn report(self) -> ExitCode {
        match self {
            Self::Usage(text) => tell("error", &text, USAGE),
            Self::Interrupted(text) => tell("interrupted", &text, interrupt::EXIT_CODE),
            Self::Failed(error) => match error.downcast_ref::<OutputError>() {
                // Whoever read us has what he wanted.
                Some(OutputError::Closed) => ExitCode::SUCCESS,
                _ => tell("error", &describe(&error), FAILED),
            },
        }
    }
}

fn tell(kind: &str, text: &str, code: u8) -> ExitCode {
    progress::suspend(|| {
        // A stderr that is gone leaves nobody to tell.
        let _ = writeln!(std::io::stderr(), "{kind}: {text}");
    });
    ExitCode::from(code)
}

/// The error and its causes in one line. Many errors already quote their cause: what has been said
/// is not said again.
fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// A panic is a bug of ours: say so in one line. A backtrace follows where `RUST_BACKTRACE` asks.
pub fn report_panics() {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(|at| format!(" ({}:{})", at.file(), at.line()));
        let text = format!(
            "internal error: {}{}. This is a bug in fleetune: please report it with the command line.",
            panic_message(info),
            place.unwrap_or_default()
        );
        tell("error", &text, FAILED);
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            let _ = writeln!(std::io::stderr(), "{}", std::backtrace::Backtrace::force_capture());
        }
    }));
}

fn panic_message<'a>(info: &'a PanicHookInfo<'_>) -> &'a str {
    info.payload_as_str().unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn causes_are_told_once() {
        let quoted = anyhow::anyhow!("disk full").context("cannot save a.bin: disk full");
        assert_eq!(describe(&quoted), "cannot save a.bin: disk full");
        let bare: anyhow::Result<()> =
            Err(anyhow::anyhow!("disk full")).context("cannot save a.bin");
        assert_eq!(describe(&bare.unwrap_err()), "cannot save a.bin: disk full");
    }
}
