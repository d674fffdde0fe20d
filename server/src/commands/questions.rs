//! Suites of questions that a simulation or a server asks its shared adapter.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use fleetune_core::model::{Decoder, LoadedModel};

use super::eval::tools::{self, JudgeChoice};
use super::simulate::data_dir;
use super::{CommandError, Context};
use crate::evaluate::data::{DataError, DataFolder};
use crate::evaluate::grading::Tools;
use crate::evaluate::run::{Plan, check};
use crate::evaluate::sandbox::SandboxError;
use crate::evaluate::suite::SuiteError;
use crate::evaluate::suites;
use crate::simulate::config::{EvaluationConfig, Origin, RunConfig};
use crate::simulate::suites::SuiteQuestions;

/// How often a failing judge is asked: fewer times than by `fleetune eval`, as rounds wait meanwhile.
const JUDGE_ATTEMPTS: u32 = 3;

/// What `asked` wants to know of the adapters that `config` trains, on the base model's decoder.
/// `origin` knows where that stands, to name the place of what cannot be had. Questions about the
/// texts in `seen` are left out. `None` where nothing is asked.
///
/// # Errors
/// When data are missing or wrong, programs cannot be confined, or the judge cannot be had.
pub fn suite_questions(
    config: &RunConfig,
    (asked, origin): (&EvaluationConfig, &Origin),
    (model, decoder): (&Arc<LoadedModel>, &Arc<Decoder>),
    seen: impl FnOnce() -> Result<HashSet<String>, CommandError>,
    ctx: &Context,
) -> Result<Option<SuiteQuestions>, CommandError> {
    let EvaluationConfig { suites, limit, template, shots, judge_model, judge_url } = asked;
    if asked.is_empty() {
        return Ok(None);
    }
    let suites = suites::named(suites).map_err(CommandError::usage)?;
    let judge = JudgeChoice {
        model: judge_model.as_deref(),
        url: judge_url.as_deref(),
        attempts: JUDGE_ATTEMPTS,
        precision: config.precision,
    };
    let programs = tools::programs(&suites, false).map_err(|error| match error {
        CommandError::Failed(error) => match error.downcast_ref() {
            Some(SandboxError::Unavailable(lacks)) => {
                let problem = format!("programs written by the model cannot be confined: {lacks}");
                CommandError::usage(origin.wrong("eval", problem))
            }
            _ => CommandError::Failed(error),
        },
        other => other,
    })?;
    let tools = Tools { programs, judge: tools::judge(&judge, ctx)? };
    let plan = Plan {
        limit: (*limit > 0).then_some(*limit),
        wrapping: *template,
        shots: *shots,
        seed: config.seed,
        seen: seen()?,
        ..Plan::new(suites, DataFolder::new(data_dir(config)?))
    };
    // Now, not when the first rounds are done.
    check(&plan).map_err(|error| match error {
        SuiteError::Data(DataError::Missing { .. }) => {
            CommandError::usage(origin.wrong("data_dir", error.to_string()))
        }
        other => CommandError::usage(other),
    })?;
    Ok(Some(SuiteQuestions {
        model: Arc::clone(model),
        decoder: Arc::clone(decoder),
        name: config.model.clone(),
        plan,
        tools: RefCell::new(tools),
        cancel: ctx.interrupt().cancel_token(),
    }))
}
