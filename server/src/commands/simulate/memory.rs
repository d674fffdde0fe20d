//! How the clients of a simulation lay out their training in memory.

use candle_core::Device;
use fleetune_core::adapter::LoraConfig;
use fleetune_core::data::Encoder;
use fleetune_core::device::{default_budget, pass_cost};
use fleetune_core::memory::{MemoryPlan, Workload, plan, plan_shared};
use fleetune_core::model::LoadedModel;
use fleetune_core::train::{AnswerLearner, Learner, PreferenceLearner, SampleLengths};

use super::CommandError;
use crate::simulate::config::RunConfig;
use crate::simulate::fleet::Fleet;
use crate::training::Task;

/// The layout of one client's training, for the longest rows that the configuration allows.
pub fn plan_memory(
    model: &LoadedModel,
    device: &Device,
    config: &RunConfig,
) -> Result<MemoryPlan, CommandError> {
    let lora = config.lora().map_err(CommandError::usage)?;
    let budget = default_budget(device, model.stored_bytes());
    plan(&workload(model, device, config, &lora), budget).map_err(CommandError::usage)
}

/// The layout of one client's training as [`plan_memory`] has it, and of as many clients in one pass
/// as are worth it on rows as long as those of `fleet`.
pub fn plan_shared_memory(
    model: &LoadedModel,
    device: &Device,
    config: &RunConfig,
    fleet: &Fleet,
    encoder: &Encoder<'_>,
) -> Result<MemoryPlan, CommandError> {
    let lora = config.lora().map_err(CommandError::usage)?;
    let budget = default_budget(device, model.stored_bytes());
    let workload = workload(model, device, config, &lora);
    let alone = plan(&workload, budget).map_err(CommandError::usage)?;
    let lengths = match config.task {
        Task::Sft => fleet.lengths::<AnswerLearner>(encoder),
        Task::Dpo => fleet.lengths::<PreferenceLearner>(encoder),
    };
    let SampleLengths { mean, .. } = lengths?;
    let expected = Workload { batch: mean.saturating_mul(rows(config)), ..workload };
    let most = match config.clients_per_pass {
        0 => config.sample.min(config.clients) as usize,
        clients => clients,
    };
    Ok(plan_shared(&expected, &alone, most, budget))
}

fn workload<'a>(
    model: &'a LoadedModel,
    device: &Device,
    config: &RunConfig,
    lora: &'a LoraConfig,
) -> Workload<'a> {
    let longest = match config.task {
        Task::Sft => AnswerLearner::longest(config.seq_len),
        Task::Dpo => PreferenceLearner::longest(config.seq_len),
    };
    Workload {
        model: &model.config,
        model_bytes: model.stored_bytes(),
        lora,
        // What FedProx or SCAFFOLD keeps beside the adapter.
        extra_adapters: 2,
        shortest: 1,
        longest,
        batch: longest.saturating_mul(rows(config)),
        target_share: 1.0,
        clients: 1,
        pass_cost: pass_cost(device),
        threads: rayon::current_num_threads(),
    }
}

/// Rows of a step.
fn rows(config: &RunConfig) -> usize {
    config.batch_size * config.grad_accum
}
