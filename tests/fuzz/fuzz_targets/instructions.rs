//! Any text is a server's instructions or an error; what is accepted can be sent and read again.
#![no_main]

use fleetune_core::client::Instructions;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(instructions) = Instructions::from_json(text)
        && let Ok(written) = instructions.to_json()
    {
        Instructions::from_json(&written).unwrap();
    }
});
