//! Builds for other platforms. Each needs its platform's tools, and says which are missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::generate;
use crate::{root, run, target_dir};

/// Pages of 16 KiB, as newer Android devices have them.
const ANDROID_FLAGS: &str = "-Clink-arg=-Wl,-z,max-page-size=16384 -Cstrip=symbols";
const ANDROID_ABIS: [&str; 4] = ["arm64-v8a", "armeabi-v7a", "x86", "x86_64"];
/// The oldest Android that the library runs on.
const ANDROID_API: &str = "26";
const ARM64: &str = "aarch64-unknown-linux-gnu";
/// Debian's cross compiler. Without `-L`: with it, qemu mixes two C libraries and threads hang.
const ARM64_TOOLS: [(&str, &str); 5] = [
    ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc"),
    ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", "timeout 900 qemu-aarch64"),
    ("CC_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-gcc"),
    ("CXX_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-g++"),
    ("AR_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-ar"),
];

/// The cards that a CUDA build is for unless CUDA_COMPUTE_CAP says otherwise: Hopper.
const CUDA_CAPABILITY: &str = "90";

/// Builds for a platform.
pub fn build(target: &str) -> Result<()> {
    match target {
        "android" => android(),
        "android-check" => android_check(),
        "ios" => run("bash", &["ios/build-xcframework.sh"], &[]),
        // The tests of the kernels and of the library, run under emulation, and what ships.
        "linux-arm64" => linux_arm64("fleetune-core", &["test", "--release", "--lib"], &["kernels::"])
            .and_then(|()| linux_arm64("fleetune-ffi", &["test", "--release"], &[]))
            .and_then(|()| linux_arm64("fleetune-ffi", &["build", "--profile", "app"], &[])),
        "wheel" => wheel(),
        "cuda" => cuda(),
        other => {
            bail!("unknown target {other}: android, android-check, cuda, ios, linux-arm64, wheel")
        }
    }
}

/// All four ABIs, laid where the Gradle module takes them from, and its Kotlin.
fn android() -> Result<()> {
    need("cargo-ndk", "cargo install cargo-ndk, and name the NDK in ANDROID_NDK_HOME")?;
    generate::all()?;
    let mut args = vec!["ndk", "--platform", ANDROID_API];
    args.extend(ANDROID_ABIS.iter().flat_map(|abi| ["-t", abi]));
    args.extend(["-o", "android/library/src/main/jniLibs", "build", "--profile", "app"]);
    args.extend(["-p", "fleetune-ffi"]);
    run("cargo", &args, &[("RUSTFLAGS", ANDROID_FLAGS)])
}

/// Type-checks the Rust side for Android where there is no NDK: nothing is linked. C parts are
/// compiled by Debian's compiler for arm64, and the standard library from its sources.
fn android_check() -> Result<()> {
    need("aarch64-linux-gnu-gcc", "apt-get install gcc-aarch64-linux-gnu g++-aarch64-linux-gnu")?;
    let args = [
        "+debian",
        "check",
        "--release",
        "-Zbuild-std=std,panic_abort",
        "--target",
        "aarch64-linux-android",
        "-p",
        "fleetune-ffi",
    ];
    let environment = [
        ("RUSTC_BOOTSTRAP", "1"),
        ("CC_aarch64_linux_android", "aarch64-linux-gnu-gcc"),
        ("CXX_aarch64_linux_android", "aarch64-linux-gnu-g++"),
        ("AR_aarch64_linux_android", "aarch64-linux-gnu-ar"),
    ];
    run("cargo", &args, &environment)
}

/// cargo for Linux on arm64: with rustup's own compiler where it has the target, else with Debian's
/// (`rustup toolchain link debian /usr`).
fn linux_arm64(package: &str, command: &[&str], arguments: &[&str]) -> Result<()> {
    need("aarch64-linux-gnu-gcc", "apt-get install gcc-aarch64-linux-gnu g++-aarch64-linux-gnu")?;
    let has_target = Command::new("rustup")
        .args(["target", "list", "--installed"])
        .output()
        .is_ok_and(|listed| String::from_utf8_lossy(&listed.stdout).contains(ARM64));
    let mut args = if has_target { vec![] } else { vec!["+debian"] };
    args.extend(command);
    args.extend(["--target", ARM64, "-p", package]);
    args.extend(arguments);
    run("cargo", &args, &ARM64_TOOLS)
}

/// The command line for NVIDIA cards, with an installed toolkit (CUDA_HOME) or, where there is none,
/// one made of wheels. It is linked against the driver, so it starts only where there is one: a build
/// of its own, in a folder of its own.
fn cuda() -> Result<()> {
    let made = target_dir().join("cuda-toolkit");
    let installed = std::env::var("CUDA_HOME").ok().map(PathBuf::from);
    let home = match installed {
        Some(home) => home,
        None => {
            run("sh", &["tests/gpu/toolkit.sh", &made.to_string_lossy()], &[])?;
            made
        }
    };
    let home = home.canonicalize()?;
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", home.join("bin").display());
    let (stub, library) = (home.join("stub"), home.join("lib64"));
    let flags = [&stub, &library].map(|folder| format!("-Lnative={}", folder.display())).join(" ");
    let capability = std::env::var("CUDA_COMPUTE_CAP").unwrap_or(CUDA_CAPABILITY.into());
    let target = target_dir().join("cuda");
    let (home, target) = (home.to_string_lossy(), target.to_string_lossy());
    let args = ["build", "--release", "-p", "fleetune-server", "--features", "cuda"];
    let environment = [
        ("CUDA_HOME", &*home),
        ("CUDA_PATH", &*home),
        ("CUDA_COMPUTE_CAP", &*capability),
        ("PATH", &*path),
        ("RUSTFLAGS", &*flags),
        ("CARGO_TARGET_DIR", &*target),
    ];
    run("cargo", &args, &environment)?;
    eprintln!("{target}/release/fleetune; start it with tests/gpu/fleetune-cuda");
    Ok(())
}

fn wheel() -> Result<()> {
    run(
        "python3",
        &["-m", "pip", "wheel", "--no-deps", "-w", "target/wheels", "bindings/python"],
        &[],
    )
}

/// How large the library that ships is on arm64, and whose code that is.
pub fn sizes() -> Result<()> {
    let unstripped = ["build", "--profile", "app", "--config", "profile.app.strip=false"];
    linux_arm64("fleetune-ffi", &unstripped, &[])?;
    let library = target_dir().join(ARM64).join("app/libfleetune_ffi.so");
    let stripped = library.with_extension("stripped.so");
    let paths = [&library, &stripped].map(|path| path.to_string_lossy().into_owned());
    run("aarch64-linux-gnu-strip", &["-o", &paths[1], &paths[0]], &[])?;
    let bytes = std::fs::metadata(&stripped)?.len();
    println!("{:.2} MB stripped", bytes as f64 / 1e6);
    let script = root().join("bindings/xtask/sizes.py");
    run("python3", &[&script.to_string_lossy(), &paths[0]], &[])
}

fn need(program: &str, how: &str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).exists());
    if !found {
        bail!("{program} is missing: {how}");
    }
    Ok(())
}
