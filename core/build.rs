//! Compiles the kernels for NVIDIA cards, in builds with the feature `cuda` alone.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the kernels lie.
const SOURCES: &str = "src/kernels/cuda";

/// The oldest cards that multiply bf16 matrices, where nothing else is asked for.
const CAPABILITY: u32 = 80;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed={SOURCES}");
    for name in ["CUDA_COMPUTE_CAP", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Err(message) = compile() {
        println!("cargo::error={message}");
    }
}

fn compile() -> Result<(), String> {
    let capability = capability()?;
    let out = std::env::var_os("OUT_DIR").ok_or("cargo names no OUT_DIR")?;
    let nvcc = nvcc();
    let output = Command::new(&nvcc)
        .args(["-ptx", "-O3", "-std=c++17"])
        .arg(format!("-arch=compute_{capability}"))
        .arg(Path::new(SOURCES).join("kernels.cu"))
        .arg("-o")
        .arg(Path::new(&out).join("kernels.ptx"))
        .output()
        .map_err(|error| {
            format!("cannot run {}: {error}; let CUDA_HOME name a CUDA toolkit", nvcc.display())
        })?;
    if output.status.success() {
        return Ok(());
    }
    // Each line of a message to cargo needs its prefix.
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        println!("cargo::warning={line}");
    }
    Err(format!("{} cannot compile the kernels", nvcc.display()))
}

/// The toolkit's compiler, or the one on the path.
fn nvcc() -> PathBuf {
    let home = ["CUDA_HOME", "CUDA_PATH"].into_iter().find_map(std::env::var_os);
    home.map_or_else(|| "nvcc".into(), |home| Path::new(&home).join("bin").join("nvcc"))
}

/// The cards to compile for: the module is translated for the actual one when it is loaded.
fn capability() -> Result<u32, String> {
    let Ok(text) = std::env::var("CUDA_COMPUTE_CAP") else { return Ok(CAPABILITY) };
    let digits = text.replace('.', "");
    match digits.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse() {
        Ok(capability) if capability >= CAPABILITY => Ok(capability),
        _ => Err(format!(
            "CUDA_COMPUTE_CAP is {text}: the kernels need a card of compute capability 8.0 or more; \
             say 80, 90 or what the card has"
        )),
    }
}
