//! The engine as a model that clients adapt: an adapter, and a trainer that starts from it.

use fleetune_core::adapter::Adapter;
use fleetune_core::data::TokenizedExample;
use fleetune_core::generate::{Continuation, GenerateOptions, generate_together};
use fleetune_core::model::{Cache, CancelToken, Decoder, PassOptions, TextTokenizer};
use fleetune_core::train::{Evaluation, PassLimits, TrainOptions, Trainer, TrainerState, evaluate};

use super::federated::Adaptable;
use super::model::ModelError;

/// Answers that are written at a time.
const TOGETHER: usize = 16;

/// A decoder with an adapter that can be trained and taken back.
pub struct AdaptableModel<'d> {
    decoder: &'d Decoder,
    tokenizer: &'d TextTokenizer,
    trainer: Trainer<'d>,
    start: TrainerState,
    learning_rate: f64,
    cancel: CancelToken,
}

impl<'d> AdaptableModel<'d> {
    /// A model that begins at `adapter` and takes steps at `learning_rate`.
    ///
    /// # Errors
    /// When the adapter does not belong to the model.
    pub fn new(
        decoder: &'d Decoder,
        tokenizer: &'d TextTokenizer,
        adapter: Adapter,
        options: TrainOptions,
        learning_rate: f64,
        cancel: CancelToken,
    ) -> anyhow::Result<Self> {
        let trainer = Trainer::new(decoder, adapter, options)?.with_cancel(cancel.clone());
        let start = trainer.state();
        Ok(Self { decoder, tokenizer, trainer, start, learning_rate, cancel })
    }
}

fn engine(error: impl Into<anyhow::Error>) -> ModelError {
    ModelError::Engine(error.into())
}

impl Adaptable for AdaptableModel<'_> {
    fn score(&mut self, texts: &[TokenizedExample]) -> Result<Vec<Evaluation>, ModelError> {
        let adapter = Some(self.trainer.adapter());
        evaluate(self.decoder, adapter, texts, PassLimits::default(), &self.cancel).map_err(engine)
    }

    fn write(&mut self, prompts: &[&[u32]], max_tokens: usize) -> Result<Vec<String>, ModelError> {
        let lora = self.decoder.lora_tensors(self.trainer.adapter()).map_err(engine)?;
        let cancel = self.cancel.clone();
        let pass = PassOptions { lora: Some(&lora), cancel, ..PassOptions::default() };
        let stop_ids = self.tokenizer.stop_ids().to_vec();
        let options = GenerateOptions { max_tokens, stop_ids, ..GenerateOptions::default() };
        let texts: Vec<_> = prompts
            .iter()
            .map(|prompt| Continuation { prompt, options: options.clone() })
            .collect();
        let mut written = vec![Vec::new(); texts.len()];
        generate_together(self.decoder, &Cache::new(), &texts, TOGETHER, &pass, &mut written)
            .map_err(engine)?;
        written.iter().map(|ids| self.tokenizer.decode(ids, true).map_err(engine)).collect()
    }

    fn step(&mut self, batch: &[TokenizedExample]) -> Result<(), ModelError> {
        self.trainer.step(batch, self.learning_rate).map(|_| ()).map_err(engine)
    }

    fn reset(&mut self) -> Result<(), ModelError> {
        self.trainer.restore(self.start.clone()).map_err(engine)
    }
}
