//! Updates and downloads: whatever the bytes, decoding ends in an error or in finite values.

#![no_main]

use fleetune_core::adapter::{Parameter, ParameterSet};
use fleetune_core::update::{BaseId, Codec, Rounding, decode, encode_for_base, receive};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

fn layout() -> ParameterSet {
    let tensor = |name: &str, shape: &[usize]| Parameter {
        name: name.into(),
        shape: shape.to_vec(),
        values: vec![0.25; shape.iter().product()],
    };
    ParameterSet::new(vec![tensor("a", &[3, 50]), tensor("b", &[70]), tensor("c", &[0])])
}

fuzz_target!(|bytes: &[u8]| {
    let layout = layout();
    let finite = |set: ParameterSet| set.iter().all(|t| t.values.iter().all(|v| v.is_finite()));
    assert!(decode(bytes, &layout).map_or(true, finite));
    assert!(receive(bytes, &layout, Some(&layout)).map_or(true, finite));

    // Behind a header and a checksum that are right, so that payloads are reached: the first byte
    // chooses a codec, the rest is what the message decompresses to.
    let Some((&choice, payload)) = bytes.split_first() else { return };
    let codecs = ["f32", "f16", "int8", "int4", "int2", "top-k:0.2+int4", "top-k:0.5+f16"];
    let codec: Codec = codecs[usize::from(choice) % codecs.len()].parse().expect("a codec");
    let rounding = Rounding::Stochastic { seed: 1 };
    let message = encode_for_base(&layout, BaseId::NONE, codec, rounding).expect("finite values");
    assert!(decode(&with_payload(&message, payload), &layout).map_or(true, finite));
});

/// The message with another payload, and length and checksum to match (docs/formats/update.md).
fn with_payload(message: &[u8], raw: &[u8]) -> Vec<u8> {
    let payload = zstd::bulk::compress(raw, 1).expect("memory");
    let mut forged = message[..84].to_vec();
    forged.extend((payload.len() as u64).to_le_bytes());
    let digest = Sha256::new().chain_update(&forged).chain_update(&payload).finalize();
    forged.extend(&digest[..8]);
    forged.extend(payload);
    forged
}
