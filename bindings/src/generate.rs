//! Writing text.

use std::ops::ControlFlow;
use std::sync::Arc;

use fleetune_core::app::{AdapterKind, KeptAdapter, WriteOptions, write_text};
use fleetune_core::model::CancelToken;

use crate::error::GenerateError;
use crate::fleetune::{Fleetune, Opened};
use crate::platform::PlatformError;

/// Which adapter writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, uniffi::Enum)]
pub enum AdapterChoice {
    /// None: the base model alone.
    Base,
    /// What this device trained for itself.
    Local,
    /// What the federation shares.
    Shared,
}

/// How text is written.
#[derive(Debug, Clone, PartialEq, uniffi::Record)]
pub struct GenerateOptions {
    /// Most tokens.
    #[uniffi(default = 256)]
    pub max_tokens: u32,
    /// 0 takes the likeliest token; larger values draw more freely.
    #[uniffi(default = 0.0)]
    pub temperature: f64,
    /// Draws only among the likeliest tokens whose probabilities reach this sum.
    #[uniffi(default = None)]
    pub top_p: Option<f64>,
    /// Seed of the draws.
    #[uniffi(default = 0)]
    pub seed: u64,
    /// Which adapter; the newest of this device where absent, or none where there is none.
    #[uniffi(default = None)]
    pub adapter: Option<AdapterChoice>,
}

/// A text, written.
#[derive(Debug, Clone, PartialEq, Eq, uniffi::Record)]
pub struct GeneratedText {
    /// The text.
    pub text: String,
    /// Tokens of it.
    pub tokens: u32,
    /// Whether the model came to an end by itself, rather than at the most tokens.
    pub ended: bool,
}

/// Hears text as it is written, on a thread of the library. What throws ends the writing.
#[uniffi::export(with_foreign)]
pub trait TokenListener: Send + Sync {
    /// The next piece: a token's text, or several tokens' where a character takes several.
    fn on_text(&self, piece: String) -> Result<(), PlatformError>;
}

#[uniffi::export]
impl Fleetune {
    /// Answers `prompt`. `listener` hears the text as it comes; the whole of it is returned.
    #[uniffi::method(default(listener = None))]
    pub async fn generate(
        &self,
        prompt: String,
        options: GenerateOptions,
        listener: Option<Arc<dyn TokenListener>>,
    ) -> Result<GeneratedText, GenerateError> {
        let opened = self.shared.opened()?;
        let cancel = CancelToken::default();
        let control = Arc::new(cancel.clone());
        let work = move || write(&opened, &prompt, &options, listener.as_deref(), cancel);
        self.shared.tasks.run("generate", control, work).await
    }
}

fn write(
    opened: &Opened,
    prompt: &str,
    options: &GenerateOptions,
    listener: Option<&dyn TokenListener>,
    cancel: CancelToken,
) -> Result<GeneratedText, GenerateError> {
    let GenerateOptions { max_tokens, temperature, top_p, seed, adapter } = *options;
    let kept = chosen(opened, adapter)?;
    let options = WriteOptions { max_tokens: max_tokens as usize, temperature, top_p, seed };
    let mut thrown = None;
    let mut each = |piece: &str| match listener.map(|l| l.on_text(piece.to_owned())) {
        Some(Err(error)) => {
            thrown = Some(error);
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    };
    let written = write_text(&opened.model, kept.as_ref(), prompt, &options, cancel, &mut each)?;
    if let Some(error) = thrown {
        return Err(GenerateError::Listener(error.to_string()));
    }
    let tokens = u32::try_from(written.tokens).unwrap_or(u32::MAX);
    Ok(GeneratedText { text: written.text, tokens, ended: written.ended })
}

/// The adapter that is asked for.
pub(crate) fn chosen(
    opened: &Opened,
    choice: Option<AdapterChoice>,
) -> Result<Option<KeptAdapter>, GenerateError> {
    let kind = match choice {
        Some(AdapterChoice::Base) => return Ok(None),
        Some(AdapterChoice::Local) => AdapterKind::Local,
        Some(AdapterChoice::Shared) => AdapterKind::Shared,
        None => match opened.adapters.newest() {
            None => return Ok(None),
            Some(kind) => kind,
        },
    };
    match opened.adapters.load(kind)? {
        None => Err(GenerateError::NoAdapter),
        kept => Ok(kept),
    }
}
