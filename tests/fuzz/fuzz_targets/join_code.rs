//! Any text is a join code or an error; a code reads back as it is printed.
#![no_main]

use fleetune_core::protocol::{JoinCode, hash};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = text.parse::<JoinCode>();
    }
    // With a right checksum the fuzzer gets to what is behind it.
    let checked = [bytes, &hash(bytes)[..4]].concat();
    if let Ok(code) = format!("ft1-{}", base32(&checked)).parse::<JoinCode>() {
        assert_eq!(code.to_string().parse(), Ok(code));
    }
});

fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let (mut text, mut bits, mut held) = (String::new(), 0_u32, 0);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            text.push(char::from(ALPHABET[(bits >> held & 31) as usize]));
        }
    }
    if held > 0 {
        text.push(char::from(ALPHABET[(bits << (5 - held) & 31) as usize]));
    }
    text
}
