//! The `fleetune` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    fleetune_server::commands::main()
}
