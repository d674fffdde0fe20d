//! What the end-to-end suites share.

pub mod federation;
pub mod golden;
pub mod random_model;
