//! What the tests of the command line share. Each test program uses a part of it.
#![allow(dead_code)]

pub mod browser;
pub mod hub;
#[cfg(target_os = "linux")]
pub mod participant;
pub mod relay;
#[cfg(target_os = "linux")]
pub mod server;
pub mod tiny;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The program, with a cache of its own and nothing of the user's environment that it looks at.
pub fn fleetune(cache: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleetune"));
    command.env("FLEETUNE_CACHE", cache);
    for variable in
        ["FLEETUNE_LOG", "FLEETUNE_KERNELS", "RUST_BACKTRACE", "HF_TOKEN", "HF_HUB_OFFLINE"]
    {
        command.env_remove(variable);
    }
    command
}

/// Adapters, states and control variates of a run, by path.
pub fn computed_files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        for entry in fs::read_dir(&current).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "safetensors") {
                let name = path.strip_prefix(folder).unwrap().to_owned();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Exit code, stdout and stderr.
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ended {
    pub fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The last line on stderr, after checking that the program failed with `code`.
    pub fn error(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{}", self.err);
        assert!(!self.err.contains("internal error"), "{}", self.err);
        self.err.lines().last().unwrap_or_default()
    }

    /// The value on stdout, after checking that the program succeeded.
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, Some(0), "{}", self.err);
        serde_json::from_str(&self.out).unwrap()
    }
}

/// Runs the program to its end.
pub fn run(cache: &Path, args: &[&str]) -> Ended {
    Ended::of(fleetune(cache).args(args).output().unwrap())
}
