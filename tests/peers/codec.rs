//! Measures every codec on a real update: bytes, error and speed on one core.
//!
//! `peer-codec BEFORE AFTER` takes two adapter folders, such as the checkpoints of two rounds, and
//! prints a Markdown table. Speeds are bytes of the update in f32 by time, of the fastest run, as
//! other programs may share the machine; `both` is encoding and decoding, one after the other.

use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use fleetune_core::adapter::{ParameterSet, read_parameters};
use fleetune_core::update::{
    BaseId, Codec, Rounding, UpdateError, decode, encode_for_base, encode_with_feedback,
};

const CODECS: [&str; 12] = [
    "f32",
    "f16",
    "int8",
    "int4",
    "int2",
    "top-k:0.25+int4",
    "top-k:0.25+int2",
    "top-k:0.1+f16",
    "top-k:0.1+int4",
    "top-k:0.1+int2",
    "top-k:0.05+int4",
    "top-k:0.01+int4",
];
/// Long enough for an undisturbed run, short enough to measure all codecs.
const TIME: Duration = Duration::from_millis(400);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [before, after] = &arguments[..] else {
        return Err("usage: peer-codec BEFORE AFTER".into());
    };
    let (before, after) = (read_parameters(Path::new(before))?, read_parameters(Path::new(after))?);
    let update = after.difference(&before)?;
    let f32_bytes = 4 * update.num_values();
    println!("{} values, {f32_bytes} bytes in f32\n", update.num_values());
    println!("| codec | bytes | of f32 | relative error | encode MB/s | decode MB/s | both MB/s |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    for name in CODECS {
        let codec: Codec = name.parse()?;
        let message = send(&update, codec)?;
        let error = decode(&message, &update)?.difference(&update)?.l2_norm() / update.l2_norm();
        let encode_seconds = seconds(|| send(&update, codec).map(drop))?;
        let decode_seconds = seconds(|| decode(&message, &update).map(drop))?;
        let speed = |seconds: f64| f32_bytes as f64 / seconds / 1e6;
        println!(
            "| {name} | {} | {:.2} % | {error:.4} | {:.0} | {:.0} | {:.0} |",
            message.len(),
            100.0 * message.len() as f64 / f32_bytes as f64,
            speed(encode_seconds),
            speed(decode_seconds),
            speed(encode_seconds + decode_seconds),
        );
    }
    Ok(())
}

/// The message that a client would send, the keeping of what is left out included.
fn send(update: &ParameterSet, codec: Codec) -> Result<Vec<u8>, UpdateError> {
    if codec.needs_feedback() {
        let mut residual = update.zeros_like();
        return encode_with_feedback(update, &mut residual, BaseId::NONE, codec);
    }
    encode_for_base(update, BaseId::NONE, codec, Rounding::Stochastic { seed: 1 })
}

/// The fastest of several runs.
fn seconds(mut run: impl FnMut() -> Result<(), UpdateError>) -> Result<f64, UpdateError> {
    let (started, mut fastest) = (Instant::now(), f64::INFINITY);
    while started.elapsed() < TIME {
        let before = Instant::now();
        black_box(run()?);
        fastest = fastest.min(before.elapsed().as_secs_f64());
    }
    Ok(fastest)
}
