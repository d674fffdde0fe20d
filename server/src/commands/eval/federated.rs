//! The suite `federated`: the clients of a simulation, and the texts it trained on.

use std::collections::HashSet;
use std::path::Path;

use clap::Args;
use fleetune_core::adapter::Adapter;
use fleetune_core::data::Encoder;
use fleetune_core::train::{AdamWOptions, AnswerLearner, TrainOptions};

use super::super::{CommandError, simulate, values};
use super::{Bars, Opened};
use crate::evaluate::adaptable::AdaptableModel;
use crate::evaluate::federated::{
    self, ClientData, FederatedError, HeldOut, NAME, View, ViewOptions, view,
};
use crate::evaluate::journal::Journal;
use crate::evaluate::result::SuiteResult;
use crate::evaluate::suite::{Scoring, Wrapping};
use crate::seed::{Choice, derived};
use crate::simulate::config::RunConfig;
use crate::simulate::fleet::Fleet;
use crate::simulate::run::{config_of, folder_of};
use crate::training::Task;

/// How the suite `federated` measures.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of the suite federated")]
pub struct FederatedArgs {
    /// Steps that each client adapts the model by, to measure it again; 0 for none
    #[arg(long, value_name = "N", default_value_t = 10)]
    personalise_steps: usize,
    /// Held-out questions that each client has answered in writing, for ROUGE-L; 0 for none
    #[arg(long, value_name = "N", default_value_t = 4)]
    answers: usize,
    /// Learning rate of these steps [default: the simulation's]
    #[arg(long, value_name = "F", value_parser = values::positive)]
    personalise_lr: Option<f64>,
}

/// No view.
pub enum ViewError {
    /// On request.
    Stopped,
    /// For any other reason.
    Other(CommandError),
}

impl<E: Into<CommandError>> From<E> for ViewError {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// A simulation and its data.
pub struct Simulation {
    config: RunConfig,
    fleet: Fleet,
}

impl Simulation {
    /// Reads the configuration of the run in `folder` and deals its rows as it did.
    ///
    /// # Errors
    /// When there is no run, or several, or its data cannot be read.
    pub fn open(folder: &Path) -> Result<Self, CommandError> {
        let config = config_of(folder).map_err(CommandError::usage)?;
        if let Some(first) = config.compare.first() {
            let one = folder_of(folder, *first);
            return Err(CommandError::Usage(format!(
                "{} compares several algorithms: name the run of one of them, such as --run {}",
                folder.display(),
                one.display()
            )));
        }
        // All held-out rows, not only those that evaluations between rounds read.
        let config = RunConfig { eval_rows: 0, ..config };
        let dataset = simulate::open_dataset(&config)?;
        let fleet = Fleet::new(dataset, &config).map_err(CommandError::usage)?;
        Ok(Self { config, fleet })
    }

    /// The model to ask: that of the run, unless the user names another one.
    pub fn model(&self, named: Option<&str>) -> String {
        let own = self.config.model.as_str();
        let named = named.unwrap_or(own);
        if named != own {
            tracing::warn!("the run is of the model {own}; {named} is measured");
        }
        named.to_owned()
    }

    /// What the inputs of all training rows say.
    ///
    /// # Errors
    /// When a row cannot be read.
    pub fn training_texts(&self) -> Result<HashSet<String>, CommandError> {
        Ok(self.fleet.training_texts()?)
    }

    /// Measures every client, on `limit` held-out rows each at most.
    ///
    /// # Errors
    /// When a client lacks rows, or the model fails.
    pub fn view(
        &self,
        args: &FederatedArgs,
        limit: Option<usize>,
        opened: &Opened,
        journal: &mut Journal,
        watcher: &mut Bars,
    ) -> Result<SuiteResult, ViewError> {
        let config = &self.config;
        if config.task != Task::Sft {
            let problem = "the suite federated measures answers: it needs a run of the task sft";
            return Err(ViewError::Other(CommandError::Usage(problem.to_owned())));
        }
        let tokenizer = opened.model.tokenizer()?;
        let encoder = Encoder::new(config.template(), tokenizer, config.seq_len)?;
        let adapter = match &opened.adapter {
            Some(opened) => opened.adapter.clone(),
            None => {
                let seed = derived(config.seed, Choice::Adapter, &[]);
                Adapter::new(config.lora()?, &opened.model.config, seed)?
            }
        };
        let rate = args.personalise_lr.unwrap_or(config.lr);
        let options = ViewOptions {
            steps: args.personalise_steps,
            batch_size: config.batch_size,
            answers: args.answers,
            answer_tokens: config.answer_tokens,
            seed: config.seed,
            training: format!("{rate} {} {:?}", config.weight_decay, adapter.config),
        };
        let clients = self.clients(&encoder, &options, limit)?;
        let training = TrainOptions {
            optimizer: AdamWOptions { weight_decay: config.weight_decay, ..Default::default() },
            seed: derived(config.seed, Choice::Training, &[]),
            ..TrainOptions::default()
        };
        let cancel = watcher.interrupt.cancel_token();
        let mut model =
            AdaptableModel::new(&opened.decoder, tokenizer, adapter, training, rate, cancel)?;
        let View { metrics, seconds } = match view(&clients, &mut model, &options, journal, watcher)
        {
            Err(FederatedError::Stopped) => return Err(ViewError::Stopped),
            other => other?,
        };
        let rows: usize = clients.iter().map(|client| client.held_out.len()).sum();
        let first = clients.iter().flat_map(|client| &client.held_out).next();
        let prompt = first.map(|row| tokenizer.decode(&row.prompt, false)).transpose()?;
        Ok(SuiteResult {
            suite: NAME.to_owned(),
            family: federated::card().family.to_owned(),
            scoring: Scoring::HeldOut,
            template: Wrapping::In(config.template()),
            prompt: prompt.unwrap_or_default(),
            shots: 0,
            rows,
            rows_in_suite: limit.map_or(rows, |_| self.fleet.held_out()),
            rows_seen: 0,
            seed: config.seed,
            judge: None,
            cut: 0,
            not_run: Default::default(),
            seconds,
            rows_per_second: if seconds > 0.0 { rows as f64 / seconds } else { 0.0 },
            metrics,
            wrong: Vec::new(),
        })
    }

    /// The clients' data, as much of it as the view uses.
    fn clients(
        &self,
        encoder: &Encoder,
        options: &ViewOptions,
        limit: Option<usize>,
    ) -> Result<Vec<ClientData>, CommandError> {
        let dealt = self.fleet.deal_held_out(self.config.seed)?;
        let wanted = options.steps * options.batch_size;
        let mut clients = Vec::with_capacity(dealt.len());
        for (client, held_out) in (0..self.config.clients).zip(dealt) {
            // A shard's rows are in random order already.
            let rows: Vec<usize> = (0..self.fleet.rows_of(client)).take(wanted).collect();
            let train = self.fleet.samples::<AnswerLearner>(client, rows, encoder);
            let train = train.collect::<Result<_, _>>()?;
            let mut data = ClientData { name: client.to_string(), train, held_out: Vec::new() };
            for i in held_out.into_iter().take(limit.unwrap_or(usize::MAX)) {
                let sample = self.fleet.held_out_sample::<AnswerLearner>(i, encoder)?;
                let Some((_, example)) = sample else { continue };
                let (_, record) = self.fleet.held_out_record(i)?;
                let prompt = encoder.prompt(&record)?;
                let answer = record.answer().to_owned();
                data.held_out.push(HeldOut { example, prompt, answer });
            }
            clients.push(data);
        }
        Ok(clients)
    }
}
