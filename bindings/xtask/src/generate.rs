//! Generates the sources of the bindings from the library as it was built.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::{root, run, target_dir};

/// The generated sources, which are not committed: the same library gives the same files.
pub fn generated(language: &str) -> PathBuf {
    let folder = match language {
        "kotlin" => "android/library/generated",
        "swift" => "ios/generated",
        // Where a wheel has it too: the package works from its sources.
        _ => "bindings/python/fleetune/fleetune_ffi",
    };
    root().join(folder)
}

/// Builds the library for this machine and generates the sources.
pub fn all() -> Result<()> {
    // The whole workspace: fewer crates would mean other features, and everything built again.
    run("cargo", &["build", "--release", "--workspace"], &[])?;
    let library = library()?;
    let generator = std::env::current_exe()?.with_file_name("uniffi-bindgen");
    // Nothing to do where it is up to date.
    let build = ["build", "--quiet", "--release", "--manifest-path", "bindings/xtask/Cargo.toml"];
    run("cargo", &build, &[])?;
    for language in ["kotlin", "swift", "python"] {
        let out = generated(language);
        if out.exists() {
            fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
        }
        let (library, out) = (library.to_string_lossy(), out.to_string_lossy());
        let args = ["generate", "--no-format", "--language", language, "--out-dir", &out, &library];
        run(&generator.to_string_lossy(), &args, &[])?;
    }
    place_swift()?;
    let module = generated("python");
    fs::write(module.join("__init__.py"), "from .fleetune import *  # NOQA\n")?;
    let name = library.file_name().context("a library has a name")?;
    fs::copy(&library, module.join(name))?;
    Ok(())
}

/// Lays the Swift source and the header where the package takes them from.
fn place_swift() -> Result<()> {
    let sources = root().join("ios/Sources");
    fs::create_dir_all(sources.join("Fleetune/Generated"))?;
    for (name, to) in [
        ("Fleetune.swift", "Fleetune/Generated/Fleetune.swift"),
        ("FleetuneFFI.h", "FleetuneFFI/FleetuneFFI.h"),
    ] {
        fs::copy(generated("swift").join(name), sources.join(to))
            .with_context(|| format!("cannot write ios/Sources/{to}"))?;
    }
    Ok(())
}

/// The library that was built.
pub fn library() -> Result<PathBuf> {
    let names = ["libfleetune_ffi.so", "libfleetune_ffi.dylib", "fleetune_ffi.dll"];
    let folder = target_dir().join("release");
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.exists());
    match found {
        Some(path) => Ok(path),
        None => bail!("no library in {}", folder.display()),
    }
}
