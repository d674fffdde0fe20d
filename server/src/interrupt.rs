//! Ctrl-C as a flag that long work looks at between its steps.
//!
//! The first signal asks; the second one ends the process at once. A command that never asks for
//! the flag keeps the system's own behaviour: Ctrl-C ends it.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code of a command that was interrupted (128 + SIGINT).
pub const EXIT_CODE: u8 = 130;

/// Whether the user asked to stop. Clones share the answer.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// The process's interrupt; the first call starts to listen for Ctrl-C and SIGTERM.
    pub fn listen() -> Self {
        static LISTENING: OnceLock<Interrupt> = OnceLock::new();
        LISTENING
            .get_or_init(|| {
                let interrupt = Interrupt::default();
                let flag = interrupt.clone();
                let handler = move || {
                    if flag.0.swap(true, Ordering::SeqCst) {
                        std::process::exit(i32::from(EXIT_CODE));
                    }
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
        self.0.load(Ordering::SeqCst)
    }

    /// Asks to stop, as Ctrl-C does.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// The flag itself, for code that knows nothing of this type.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}
