//! The demo set: small skills of our own, so that the first command needs no data.
//!
//! `core/assets/demo/generate.py` writes the rows; they are part of the program. Each skill is one
//! `source` and one `label`, and every skill has rows that are held out (`split`).

use super::format::{Format, InstructionFields};

/// The rows, as JSON Lines.
pub(super) const ROWS: &[u8] = include_bytes!("../../assets/demo/demo.jsonl");

/// What errors call the embedded file.
pub(super) const FILE_NAME: &str = "demo.jsonl";

/// How the rows are written.
pub(super) fn format() -> Format {
    Format::Instruction(InstructionFields::new("instruction", Some("input"), "response"))
}
