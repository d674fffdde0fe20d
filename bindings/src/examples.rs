//! The examples that a user gave.

use std::sync::Arc;

use fleetune_core::app;
use fleetune_core::model::CancelToken;

use crate::error::ExamplesError;
use crate::fleetune::{Opened, Shared, now};

/// Something to learn: an answer that the user would have liked.
#[derive(Debug, Clone, PartialEq, Eq, uniffi::Record)]
pub struct Example {
    /// What is asked.
    pub instruction: String,
    /// The answer to learn.
    pub response: String,
    /// What the instruction is about, where there is something.
    #[uniffi(default = None)]
    pub input: Option<String>,
}

/// An example with its place in the store.
#[derive(Debug, Clone, PartialEq, Eq, uniffi::Record)]
pub struct StoredExample {
    /// Its number, which no other example ever has.
    pub id: i64,
    /// When it was added, seconds since 1970.
    pub added: u64,
    /// The example.
    pub example: Example,
}

impl From<app::StoredExample> for StoredExample {
    fn from(stored: app::StoredExample) -> Self {
        let app::StoredExample { id, added, example } = stored;
        let app::Example { instruction, input, response } = example;
        Self { id, added, example: Example { instruction, response, input } }
    }
}

/// The private store of examples. They stay on this device, in one file, until they are removed, are
/// too old, or make room for new ones. Only what training makes of them ever leaves.
#[derive(uniffi::Object)]
pub struct Examples(pub(crate) Arc<Shared>);

impl Examples {
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Opened) -> Result<T, app::ExampleError> + Send + 'static,
    ) -> Result<T, ExamplesError> {
        let opened = self.0.opened()?;
        let work = move || work(&opened).map_err(ExamplesError::from);
        self.0.tasks.run("examples", Arc::new(CancelToken::default()), work).await
    }
}

#[uniffi::export]
impl Examples {
    /// Keeps an example and tells its number. The oldest ones go where there is no room.
    pub async fn add(&self, example: Example) -> Result<i64, ExamplesError> {
        let Example { instruction, response, input } = example;
        let example = app::Example { instruction, input, response };
        self.with(move |opened| opened.examples.add(&example, now())).await
    }

    /// Number of examples.
    pub async fn count(&self) -> Result<u64, ExamplesError> {
        self.with(|opened| opened.examples.len()).await
    }

    /// Bytes of all examples.
    pub async fn bytes(&self) -> Result<u64, ExamplesError> {
        self.with(|opened| opened.examples.bytes()).await
    }

    /// Up to `limit` examples whose number is above `after`, the oldest first.
    #[uniffi::method(default(after = 0, limit = 100))]
    pub async fn list(&self, after: i64, limit: u32) -> Result<Vec<StoredExample>, ExamplesError> {
        self.with(move |opened| {
            let page = opened.examples.page(after, limit)?;
            Ok(page.into_iter().map(StoredExample::from).collect())
        })
        .await
    }

    /// Removes an example; false where there is none with this number.
    pub async fn remove(&self, id: i64) -> Result<bool, ExamplesError> {
        self.with(move |opened| opened.examples.remove(id)).await
    }

    /// Removes all examples: no text of them is left in the file.
    pub async fn erase_all(&self) -> Result<(), ExamplesError> {
        self.with(|opened| opened.examples.erase_all()).await
    }
}
