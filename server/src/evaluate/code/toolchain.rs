//! Programming languages as they are installed on this machine.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

/// A language that programming suites ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Language {
    /// Python 3.
    Python,
    /// JavaScript, run by Node.js.
    JavaScript,
    /// Java.
    Java,
    /// Go.
    Go,
    /// C++, compiled by `g++` or `clang++`.
    Cpp,
    /// Rust.
    Rust,
}

/// Where an installed language lies.
#[derive(Debug, Clone)]
pub struct Toolchain {
    /// The program that runs or compiles.
    pub program: PathBuf,
    /// The program that runs what was compiled, where that needs one.
    pub runtime: Option<PathBuf>,
    /// Folders that both need to read.
    pub roots: Vec<PathBuf>,
    /// Variables of their environment.
    pub environment: BTreeMap<String, OsString>,
    /// Libraries that programs are linked with: arguments of the compiler.
    pub libraries: Vec<OsString>,
}

impl Language {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Python, Self::JavaScript, Self::Java, Self::Go, Self::Cpp, Self::Rust];

    /// The name people use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "Python",
            Self::JavaScript => "JavaScript",
            Self::Java => "Java",
            Self::Go => "Go",
            Self::Cpp => "C++",
            Self::Rust => "Rust",
        }
    }

    /// The name of HumanEvalPack's file.
    pub fn file(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::JavaScript => "js",
            Self::Java => "java",
            Self::Go => "go",
            Self::Cpp => "cpp",
            Self::Rust => "rust",
        }
    }

    /// Finds the language on this machine. `cache` is a folder for what it prepares once.
    ///
    /// # Errors
    /// Says in a few words what is missing.
    pub fn find(self, cache: &Path) -> Result<Toolchain, String> {
        match self {
            Self::Python => {
                let script =
                    "import sys; print(sys.executable); print(sys.base_prefix); print(sys.prefix)";
                let found = answer("python3", &["-c", script])?;
                let paths: Vec<PathBuf> = found.lines().map(PathBuf::from).collect();
                match paths.as_slice() {
                    [program, roots @ ..] => Ok(Toolchain::new(program.clone(), roots.to_vec())),
                    [] => Err("python3 does not say where it is".to_owned()),
                }
            }
            Self::JavaScript => {
                let program = PathBuf::from(answer("node", &["-p", "process.execPath"])?);
                let roots = program.parent().map(Path::to_owned).into_iter().collect();
                // Its library for cryptography insists on a configuration, which is out of reach.
                let environment = BTreeMap::from([("OPENSSL_CONF".into(), "/dev/null".into())]);
                Ok(Toolchain { environment, ..Toolchain::new(program, roots) })
            }
            Self::Java => {
                // The compiler belongs to a development kit; a runtime alone does not do.
                answer("javac", &["-version"])?;
                let settings = answer("java", &["-XshowSettings:properties", "-version"])?;
                let home =
                    settings.lines().find_map(|line| line.trim().strip_prefix("java.home = "));
                let home = PathBuf::from(home.ok_or("java does not say where it is")?);
                let runtime = Some(home.join("bin/java"));
                let roots = vec![home.clone()];
                Ok(Toolchain { runtime, ..Toolchain::new(home.join("bin/javac"), roots) })
            }
            Self::Go => {
                let root = PathBuf::from(answer("go", &["env", "GOROOT"])?);
                let environment = [
                    ("GOFLAGS", "-mod=mod"),
                    ("GOPROXY", "off"),
                    ("GOTOOLCHAIN", "local"),
                    ("CGO_ENABLED", "0"),
                ];
                let environment = environment.map(|(name, value)| (name.to_owned(), value.into()));
                let program = root.join("bin/go");
                let environment = environment.into_iter().collect();
                Ok(Toolchain { environment, ..Toolchain::new(program, vec![root]) })
            }
            Self::Cpp => {
                let found = ["g++", "clang++"].iter().find_map(|name| which(name));
                let program = found.ok_or("neither g++ nor clang++ is installed")?;
                Ok(Toolchain::new(program, vec![]))
            }
            Self::Rust => {
                let root = PathBuf::from(answer("rustc", &["--print", "sysroot"])?);
                which("cc").ok_or("rustc needs a linker (cc), which is not installed")?;
                let libraries = rust_crates(cache)?;
                let program = root.join("bin/rustc");
                let roots = vec![root, cache.to_owned()];
                Ok(Toolchain { libraries, ..Toolchain::new(program, roots) })
            }
        }
    }
}

impl Toolchain {
    fn new(program: PathBuf, roots: Vec<PathBuf>) -> Self {
        Self { program, runtime: None, roots, environment: BTreeMap::new(), libraries: Vec::new() }
    }
}

/// What a program of this machine writes, on either output.
fn answer(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|_| format!("{program} is not installed"))?;
    if !output.status.success() {
        return Err(format!("{program} does not run"));
    }
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

/// The path of an installed program.
fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut candidates = std::env::split_paths(&path).map(|folder| folder.join(name));
    candidates.find(|candidate| candidate.is_file())
}

/// Compiles the crates that HumanEvalPack's Rust programs use, in the versions they are written
/// for, and says how to link with them.
fn rust_crates(cache: &Path) -> Result<Vec<OsString>, String> {
    let missing =
        |problem: &str| format!("the crates rand, regex and md5 cannot be had: {problem}");
    let project = cache.join("rust-crates");
    let manifest = "[package]\nname = \"crates\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n\
                    [dependencies]\nrand = \"0.7\"\nregex = \"1\"\nmd5 = \"0.7\"\n\n[workspace]\n";
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(project.join("src"))?;
        std::fs::write(project.join("Cargo.toml"), manifest)?;
        std::fs::write(project.join("src/lib.rs"), "")
    };
    write().map_err(|e| missing(&e.to_string()))?;
    let built = Command::new("cargo")
        .args(["build", "--quiet", "--target-dir", "target"])
        .current_dir(&project)
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .map_err(|_| missing("cargo is not installed"))?;
    if !built.status.success() {
        let text = String::from_utf8_lossy(&built.stderr);
        return Err(missing(text.lines().next().unwrap_or("cargo failed")));
    }
    let folder = project.join("target/debug/deps");
    let mut arguments = vec!["-L".into(), format!("dependency={}", folder.display()).into()];
    let entries = std::fs::read_dir(&folder).map_err(|e| missing(&e.to_string()))?;
    let files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    for name in ["rand", "regex", "md5"] {
        let is_library = |path: &&PathBuf| {
            let file = path.file_name().and_then(|file| file.to_str()).unwrap_or("");
            file.starts_with(&format!("lib{name}-")) && file.ends_with(".rlib")
        };
        let library = files.iter().find(is_library).ok_or_else(|| missing(name))?;
        arguments.extend(["--extern".into(), format!("{name}={}", library.display()).into()]);
    }
    Ok(arguments)
}
