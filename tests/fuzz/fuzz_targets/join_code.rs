//! Any text is a join code or an error; a code reads back as it is printed.
#![no_main]

use data_encoding::BASE32_NOPAD;
use fleetune_core::protocol::{JoinCode, hash};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = text.parse::<JoinCode>();
    }
    // With a right checksum the fuzzer gets to what is behind it.
    let checked = [bytes, &hash(bytes)[..4]].concat();
    if let Ok(code) = format!("ft1-{}", BASE32_NOPAD.encode(&checked).to_lowercase()).parse::<JoinCode>() {
        assert_eq!(code.to_string().parse(), Ok(code));
    }
});
