//! What an operator sees and orders, by the commands of `fleetune admin` or on the web page.
//!
//! Everything here works on the state folder: a running server sees a new invite and a revocation with
//! the next request, an order within a second; one that is not running when it starts.

mod error;
mod invite;
mod orders;
mod standing;

pub use error::OperatorError;
pub use invite::{InviteTerms, identity_folder, invite, leave_addresses, leave_authority};
pub use orders::{order, revoke};
pub use standing::{
    Standing, SuiteScore, date, evaluations, standing, standings, suites, summaries,
};
