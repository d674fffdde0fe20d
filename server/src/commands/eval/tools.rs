//! What grading needs besides the model: a place for programs, and a judge.

use std::time::Duration;

use anyhow::Context as _;

use super::super::engine::EngineArgs;
use super::super::{CommandError, Context};
use super::Opened;
use crate::evaluate::code::ProgramRunner;
use crate::evaluate::judge::{Endpoint, EndpointOptions, Judge, JudgeError, LocalJudge};
use crate::evaluate::sandbox::Sandbox;
use crate::evaluate::suite::Suite;
use crate::training::ComputePrecision;

/// Variables that may hold the judge's key, in order.
const KEY_VARIABLES: [&str; 2] = ["FLEETUNE_JUDGE_KEY", "OPENAI_API_KEY"];
/// How often to ask a failing judge before giving up.
pub(super) const JUDGE_ATTEMPTS: u32 = 8;

/// Where programs run, if a suite has any.
///
/// # Errors
/// When they cannot be confined here and `allow_unsandboxed` is not set.
pub fn programs(
    suites: &[Box<dyn Suite>],
    allow_unsandboxed: bool,
) -> Result<Option<ProgramRunner>, CommandError> {
    if !suites.iter().any(|suite| suite.card().family == "code") {
        return Ok(None);
    }
    let launcher = std::env::current_exe().context("cannot find the fleetune binary")?;
    let sandbox = match Sandbox::open(launcher) {
        Ok(sandbox) => sandbox,
        Err(error) if allow_unsandboxed => {
            tracing::warn!("{error}. As you asked, programs run without it");
            Sandbox::unprotected()
        }
        Err(error) => return Err(error.into()),
    };
    Ok(Some(ProgramRunner::new(sandbox).context("cannot make a folder for programs")?))
}

/// Who is to judge.
pub struct JudgeChoice<'a> {
    /// The endpoint's model, or a local one; `None` for no judge.
    pub model: Option<&'a str>,
    /// The endpoint.
    pub url: Option<&'a str>,
    /// How often to ask a failing endpoint before giving up.
    pub attempts: u32,
    /// How a local judge computes.
    pub precision: ComputePrecision,
}

/// The judge's key and the variable that holds it.
fn key() -> Result<Option<(&'static str, String)>, CommandError> {
    let set = KEY_VARIABLES.into_iter().find_map(|name| Some((name, std::env::var_os(name)?)));
    let Some((name, key)) = set else { return Ok(None) };
    let key = key.into_string().map_err(|_| unusable(name, &JudgeError::Key))?;
    Ok(Some((name, key)))
}

fn unusable(variable: &str, error: &JudgeError) -> CommandError {
    CommandError::Usage(format!("{variable}: {error}"))
}

/// The judge, if one is wanted.
///
/// # Errors
/// When a local model cannot be opened, or the endpoint's address or its key cannot be used.
pub fn judge(
    choice: &JudgeChoice<'_>,
    ctx: &Context,
) -> Result<Option<Box<dyn Judge>>, CommandError> {
    let Some(model) = choice.model else { return Ok(None) };
    let Some(url) = choice.url else {
        let engine = EngineArgs { model: Some(model.to_owned()), precision: choice.precision };
        let judge = Opened::new(&engine, None, ctx)?.language_model(&ctx.interrupt())?;
        return Ok(Some(Box::new(LocalJudge::new(judge))));
    };
    let (variable, key) = key()?.unzip();
    let endpoint = Endpoint::new(EndpointOptions {
        url: url.to_owned(),
        model: model.to_owned(),
        key,
        attempts: choice.attempts,
        timeout: Duration::from_secs(300),
        pause: Duration::from_secs(1),
        cancel: ctx.interrupt().cancel_token(),
    });
    let endpoint = endpoint.map_err(|error| match error {
        JudgeError::Key => unusable(variable.unwrap_or(KEY_VARIABLES[0]), &error),
        JudgeError::Address(_) => CommandError::Usage(format!("--judge-url: {error}")),
        other => CommandError::usage(other),
    });
    Ok(Some(Box::new(endpoint?)))
}
