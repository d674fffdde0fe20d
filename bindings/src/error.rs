//! One error enum per operation. The variant says what kind of failure it is, for code; the message
//! what is wrong and how to mend it, for people.

use fleetune_core::adapter::AdapterError;
use fleetune_core::app::{ExampleError, ParticipationError, WriteError};
use fleetune_core::client::{ParticipantError, TrainerError};
use fleetune_core::model::EngineError;
use fleetune_core::protocol::JoinCodeError;

use crate::work::WorkFault;

const CLOSED: &str = "fleetune was closed: open it again before you use it";

/// Turns the faults of work itself into an operation's own.
macro_rules! work_faults {
    ($($error:ident),*) => {$(
        impl From<WorkFault> for $error {
            fn from(fault: WorkFault) -> Self {
                match fault {
                    WorkFault::Closed => Self::Closed(CLOSED.to_owned()),
                    WorkFault::Internal(problem) => Self::Internal(problem),
                }
            }
        }
    )*};
}
work_faults!(OpenError, ExamplesError, GenerateError, TrainError, JoinError, FederationError);

/// Why the library cannot be opened.
#[derive(Debug, thiserror::Error, uniffi::Error)]
#[uniffi(flat_error)]
#[non_exhaustive]
pub enum OpenError {
    /// The model is missing, damaged, or none that can be computed.
    #[error("cannot use the model: {0}")]
    Model(String),
    /// Another instance uses the folder.
    #[error("another instance of fleetune uses {0}: open one per app, and close it first")]
    InUse(String),
    /// The folder cannot be used.
    #[error("{0}")]
    Storage(String),
    /// The platform's own code failed.
    #[error("the platform's storage location failed: {0}")]
    Platform(String),
    /// It was closed meanwhile.
    #[error("{0}")]
    Closed(String),
    /// A fault of the library's own; please report it.
    #[error("an internal error, please report it: {0}")]
    Internal(String),
}

impl From<ExampleError> for OpenError {
    fn from(error: ExampleError) -> Self {
        Self::Storage(error.to_string())
    }
}

/// Why examples cannot be kept or read.
#[derive(Debug, thiserror::Error, uniffi::Error)]
#[uniffi(flat_error)]
#[non_exhaustive]
pub enum ExamplesError {
    /// There is nothing to learn from the example.
    #[error("{0}")]
    Empty(String),
    /// The example is larger than the whole store may be.
    #[error("{0}")]
    TooLarge(String),
    /// The file is damaged.
    #[error("{0}")]
    Damaged(String),
    /// The disk failed, or is full.
    #[error("{0}")]
    Storage(String),
    /// The library was closed.
    #[error("{0}")]
    Closed(String),
    /// A fault of the library's own; please report it.
    #[error("an internal error, please report it: {0}")]
    Internal(String),
}

impl From<ExampleError> for ExamplesError {
    fn from(error: ExampleError) -> Self {
        let text = error.to_string();
        match error {
            ExampleError::Empty { .. } => Self::Empty(text),
            ExampleError::TooLarge { .. } => Self::TooLarge(text),
            ExampleError::Damaged { .. } => Self::Damaged(text),
            _ => Self::Storage(text),
        }
    }
}

/// Why no text is written.
#[derive(Debug, thiserror::Error, uniffi::Error)]
#[uniffi(flat_error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The prompt is empty, or too long for the model.
    #[error("{0}")]
    Prompt(String),
    /// There is no adapter of the kind that was asked for.
    #[error("there is no such adapter on this device yet: train, or take part in a round")]
    NoAdapter,
    /// The adapter is damaged or another model's.
    #[error("{0}")]
    Adapter(String),
    /// The listener threw.
    #[error("the listener failed: {0}")]
    Listener(String),
    /// The writing was ended.
    #[error("cancelled before the text was finished")]
    Cancelled,
    /// The engine failed.
    #[error("{0}")]
    Engine(String),
    /// The library was closed.
    #[error("{0}")]
    Closed(String),
    /// A fault of the library's own; please report it.
    #[error("an internal error, please report it: {0}")]
    Internal(String),
}

impl From<WriteError> for GenerateError {
    fn from(error: WriteError) -> Self {
        let text = error.to_string();
        match error {
            WriteError::Engine(EngineError::Cancelled) => Self::Cancelled,
            WriteError::EmptyPrompt | WriteError::TooLong { .. } | WriteError::Encode(_) => {
                Self::Prompt(text)
            }
            WriteError::Adapter(_) => Self::Adapter(text),
            _ => Self::Engine(text),
        }
    }
}

impl From<AdapterError> for GenerateError {
    fn from(error: AdapterError) -> Self {
        Self::Adapter(error.to_string())
    }
}

/// Why this device does not train for itself.
#[derive(Debug, thiserror::Error, uniffi::Error)]
#[uniffi(flat_error)]
#[non_exhaustive]
pub enum TrainError {
    /// There is nothing to train on.
    #[error("{0}")]
    NoExamples(String),
    /// An option is out of range.
    #[error("{0}")]
    Options(String),
    /// The adapter to go on from is missing, damaged or another model's.
    #[error("{0}")]
    Adapter(String),
    /// The listener threw.
    #[error("the listener failed: {0}")]
    Listener(String),
    /// The training was ended; nothing of it is kept.
    #[error("cancelled: nothing of the training is kept")]
    Cancelled,
    /// Training failed.
    #[error("{0}")]
    Failed(String),
    /// The disk failed, or is full.
    #[error("{0}")]
    Storage(String),
    /// The library was closed.
    #[error("{0}")]
    Closed(String),
    /// A fault of the library's own; please report it.
    #[error("an internal error, please report it: {0}")]
    Internal(String),
}

impl From<ExampleError> for TrainError {
    fn from(error: ExampleError) -> Self {
        let text = error.to_string();
        match error {
            ExampleError::NoExamples => Self::NoExamples(text),
            _ => Self::Storage(text),
        }
    }
}

impl From<TrainerError> for TrainError {
    fn from(error: TrainerError) -> Self {
        match error {
            TrainerError::Stopped => Self::Cancelled,
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<AdapterError> for TrainError {
    fn from(error: AdapterError) -> Self {
        Self::Storage(error.to_string())
    }
}

/// Why this device has not joined.
#[derive(Debug, thiserror::Error, uniffi::Error)]
#[uniffi(flat_error)]
#[non_exhaustive]
pub enum JoinError {
    /// The text is no join code, or a damaged one.
    #[error("{0}")]
    WrongCode(String),
    /// This device has joined another server.
    #[error("this device has joined another server: leave it first")]
    OtherServer,
    /// The server refused: the code is used up, has expired or was withdrawn.
    #[error("{0}")]
    Refused(String),
    /// No server answers.
    #[error("{0}: try again when there is a network")]
    Unreachable(String),
    /// The key store failed, or what it holds is no key.
    #[error("{0}")]
    KeyStore(String),
    /// This device takes part right now: stop it first.
    #[error("this device takes part right now: stop it first")]
    Busy,
    /// The call was cancelled.
    #[error("cancelled before the server answered")]
    Cancelled,
    /// The disk failed, or is full.
    #[error("{0}")]
    Storage(String),
    /// The library was closed.
    #[error("{0}")]
    Closed(String),
    /// A fault of the library's own; please report it.
    #[error("an internal error, please report it: {0}")]
    Internal(String),
}

impl From<JoinCodeError> for JoinError {
    fn from(error: JoinCodeError) -> Self {
        Self::WrongCode(error.to_string())
    }
}

impl From<ParticipantError> for JoinError {
    fn from(error: ParticipantError) -> Self {
        use fleetune_core::client::{FolderError, IdentityError};
        let text = error.to_string();
        match error {
            ParticipantError::Stopped => Self::Cancelled,
            ParticipantError::OtherServer => Self::OtherServer,
            ParticipantError::Refused(_) | ParticipantError::Expired => Self::Refused(text),
            ParticipantError::Identity(IdentityError::Key(_) | IdentityError::BadKey(_)) => {
                Self::KeyStore(text)
            }
            ParticipantError::Folder(FolderError::InUse(_)) => Self::Busy,
            _ => Self::Storage(text),
        }
    }
}

/// Why this device takes part no longer.
#[derive(Debug, thiserror::Error, uniffi::Error)]
#[uniffi(flat_error)]
#[non_exhaustive]
pub enum FederationError {
    /// There is nothing to train on.
    #[error("{0}")]
    NoExamples(String),
    /// The federation trains another base model than the app opened.
    #[error("{0}")]
    OtherModel(String),
    /// This device takes part already.
    #[error("this device takes part already")]
    AlreadyRunning,
    /// The app asked for it. What was begun goes on the next time.
    #[error("stopped; what was begun goes on the next time")]
    Stopped,
    /// The server will not have this device, or its certificate has expired: join anew.
    #[error("{0}")]
    Refused(String),
    /// The key store failed, or what it holds is no key.
    #[error("{0}")]
    KeyStore(String),
    /// No server answers.
    #[error("{0}: try again when there is a network")]
    Unreachable(String),
    /// The disk failed, or is full.
    #[error("{0}")]
    Storage(String),
    /// Training failed.
    #[error("{0}")]
    Failed(String),
    /// The library was closed.
    #[error("{0}")]
    Closed(String),
    /// A fault of the library's own; please report it.
    #[error("an internal error, please report it: {0}")]
    Internal(String),
}

impl From<ParticipationError> for FederationError {
    fn from(error: ParticipationError) -> Self {
        let text = error.to_string();
        match error {
            ParticipationError::Stopped => Self::Stopped,
            ParticipationError::OtherModel { .. } => Self::OtherModel(text),
            ParticipationError::Examples(ExampleError::NoExamples) => Self::NoExamples(text),
            ParticipationError::Examples(_) => Self::Storage(text),
            ParticipationError::Participant(error) => error.into(),
            _ => Self::Failed(text),
        }
    }
}

impl From<ParticipantError> for FederationError {
    fn from(error: ParticipantError) -> Self {
        use fleetune_core::client::{FolderError, IdentityError};
        let text = error.to_string();
        match error {
            ParticipantError::Stopped => Self::Stopped,
            ParticipantError::Refused(_)
            | ParticipantError::Expired
            | ParticipantError::NotEnrolled => Self::Refused(text),
            ParticipantError::Identity(IdentityError::Key(_) | IdentityError::BadKey(_)) => {
                Self::KeyStore(text)
            }
            ParticipantError::Folder(FolderError::InUse(_)) => Self::AlreadyRunning,
            ParticipantError::Folder(_) | ParticipantError::Identity(_) => Self::Storage(text),
            _ => Self::Failed(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_is_wrong_and_how_to_mend_it() {
        let code = "not a code".parse::<fleetune_core::protocol::JoinCode>().unwrap_err();
        let messages = [
            (
                JoinError::from(code).to_string(),
                "a join code starts with ft1-: copy the whole line that `fleetune admin invite` \
                 printed",
            ),
            (
                ExamplesError::from(WorkFault::Closed).to_string(),
                "fleetune was closed: open it again before you use it",
            ),
            (
                TrainError::from(ExampleError::NoExamples).to_string(),
                "there are no examples yet: add some before training",
            ),
            (
                OpenError::InUse("/data/app".into()).to_string(),
                "another instance of fleetune uses /data/app: open one per app, and close it first",
            ),
            (
                GenerateError::NoAdapter.to_string(),
                "there is no such adapter on this device yet: train, or take part in a round",
            ),
        ];
        for (message, expected) in messages {
            assert_eq!(message, expected);
        }
    }
}
