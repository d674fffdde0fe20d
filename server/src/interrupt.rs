//! Ctrl-C as a flag that long work looks at between its steps.
//!
//! The first signal asks; the second one ends the process at once. A command that never asks for
//! the flag keeps the system's own behaviour: Ctrl-C ends it.

use std::sync::OnceLock;

use fleetune_core::model::CancelToken;

/// The exit code of a command that was interrupted (128 + SIGINT).
pub const EXIT_CODE: u8 = 130;

/// Whether the user asked to stop. Clones share the answer.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(CancelToken);

impl Interrupt {
    /// The process's interrupt; the first call starts to listen for Ctrl-C and SIGTERM.
    pub fn listen() -> Self {
        static LISTENING: OnceLock<Interrupt> = OnceLock::new();
        LISTENING
            .get_or_init(|| {
                let interrupt = Interrupt::default();
                let flag = interrupt.clone();
                let handler = move || {
                    if flag.is_set() {
                        std::process::exit(i32::from(EXIT_CODE));
                    }
                    flag.set();
                    crate::progress::note(
                        "stopping after this step; press Ctrl-C again to stop at once",
                    );
                };
                if let Err(error) = ctrlc::set_handler(handler) {
                    tracing::warn!("Ctrl-C will stop at once: {error}");
                }
                interrupt
            })
            .clone()
    }

    /// Whether the user asked to stop.
    pub fn is_set(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Asks to stop, as Ctrl-C does.
    pub fn set(&self) {
        self.0.cancel();
    }

    /// The same wish for the engine, which ends a running step within one layer's time.
    pub fn cancel_token(&self) -> CancelToken {
        self.0.clone()
    }
}
