//! The `fleetune` command.

fn main() {}
