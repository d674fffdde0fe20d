//! `cargo xtask`: generates the bindings' sources and builds for other platforms.

mod api;
mod build;
mod generate;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
cargo xtask bindings             builds the library and generates the Kotlin, Swift and Python sources
cargo xtask bindings --check     fails where bindings/api.txt is not what the library offers
cargo xtask build TARGET         android | android-check | cuda | ios | linux-arm64 | wheel
cargo xtask sizes                what of the stripped library is whose";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["bindings"] => generate::all().and_then(|()| api::write()),
        ["bindings", "--check"] => generate::all().and_then(|()| api::check()),
        ["build", target] => build::build(target),
        ["sizes"] => build::sizes(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The repository.
fn root() -> &'static Path {
    // The manifest lies in `bindings/xtask` of the repository.
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("."))
}

/// Where cargo builds the workspace.
fn target_dir() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    named.unwrap_or_else(|| root().join("target"))
}

/// Runs a command in the repository.
fn run(program: &str, args: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args).current_dir(root()).envs(environment.iter().copied());
    // Set by the cargo that runs this program, for this program alone.
    for variable in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(variable);
    }
    eprintln!("+ {program} {}", args.join(" "));
    let status = command.status().with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{program} failed ({status})");
    }
    Ok(())
}
