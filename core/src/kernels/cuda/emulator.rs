//! Runs the kernels in a program that the machine's C++ compiler makes of their sources.

use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock};

use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor};
use half::bf16;

use super::{Arg, Launch, Runner, extent};

/// The program, and the device whose tensors it takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Emulator {
    program: &'static Mutex<Program>,
}

/// A running program. It ends with this process, which closes its input.
#[derive(Debug)]
struct Program {
    child: Child,
    input: BufWriter<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// Tags of what an argument is, as in `emulator/main.cpp`.
const TAGS: [(DType, u32); 3] = [(DType::F32, 0), (DType::BF16, 1), (DType::U32, 2)];
const NUMBER: u32 = 3;
const REAL: u32 = 4;

impl Emulator {
    /// The program, made at first use. `None` where it cannot be made, which is told in a line.
    ///
    /// # Panics
    /// When the compiler does not accept the kernels.
    pub fn start() -> Option<Self> {
        static PROGRAM: OnceLock<Option<Mutex<Program>>> = OnceLock::new();
        let program = PROGRAM.get_or_init(|| build().map(Mutex::new)).as_ref();
        Some(Self { program: program? })
    }
}

fn build() -> Option<Program> {
    let compiler = std::env::var("CXX").unwrap_or("c++".into());
    let known = cfg!(all(target_os = "linux", target_env = "gnu"));
    let trial = Command::new(&compiler).arg("--version").stdout(Stdio::null()).status();
    if !known || !trial.is_ok_and(|status| status.success()) {
        eprintln!("skipped: the kernels' emulator needs Linux with glibc and a C++ compiler");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("emulator");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels/cuda/emulator");
    let made = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-I"])
        .arg(&sources)
        .arg(sources.join("main.cpp"))
        .arg("-o")
        .arg(&program)
        .status()
        .unwrap();
    assert!(made.success(), "{compiler} does not accept the kernels");
    let mut child =
        Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let input = BufWriter::new(child.stdin.take().unwrap());
    let output = BufReader::new(child.stdout.take().unwrap());
    Some(Program { child, input, output })
}

/// A contiguous tensor's bytes.
fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) = extent(layout)?;
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => {
            Ok(values[start..end].iter().flat_map(|value| value.to_le_bytes()).collect())
        }
        Storage::Cpu(CpuStorage::BF16(values)) => {
            Ok(values[start..end].iter().flat_map(|value| value.to_le_bytes()).collect())
        }
        Storage::Cpu(CpuStorage::U32(values)) => {
            Ok(values[start..end].iter().flat_map(|value| value.to_le_bytes()).collect())
        }
        _ => candle_core::bail!("no kernel takes {:?}", tensor.dtype()),
    }
}

/// Replaces a tensor's values.
fn overwrite(tensor: &Tensor, bytes: &[u8]) -> Result<()> {
    let shape = tensor.shape();
    let words = || bytes.chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]);
    let values = match tensor.dtype() {
        DType::F32 => {
            let values: Vec<f32> = words().map(f32::from_le_bytes).collect();
            Tensor::from_vec(values, shape, &Device::Cpu)?
        }
        DType::U32 => {
            let values: Vec<u32> = words().map(u32::from_le_bytes).collect();
            Tensor::from_vec(values, shape, &Device::Cpu)?
        }
        _ => {
            let values = bytes.chunks_exact(2).map(|half| bf16::from_le_bytes([half[0], half[1]]));
            Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu)?
        }
    };
    tensor.inplace_op2(&values, &Replace)
}

/// Copies the second tensor's values into the first.
struct Replace;

impl candle_core::InplaceOp2 for Replace {
    fn name(&self) -> &'static str {
        "replace"
    }

    fn cpu_fwd(
        &self,
        to: &mut CpuStorage,
        to_layout: &candle_core::Layout,
        from: &CpuStorage,
        from_layout: &candle_core::Layout,
    ) -> Result<()> {
        let ((start, end), from_extent) = (extent(to_layout)?, extent(from_layout)?);
        let from_range = from_extent.0..from_extent.1;
        match (to, from) {
            (CpuStorage::F32(to), CpuStorage::F32(from)) => {
                to[start..end].copy_from_slice(&from[from_range]);
            }
            (CpuStorage::BF16(to), CpuStorage::BF16(from)) => {
                to[start..end].copy_from_slice(&from[from_range]);
            }
            (CpuStorage::U32(to), CpuStorage::U32(from)) => {
                to[start..end].copy_from_slice(&from[from_range]);
            }
            _ => candle_core::bail!("no kernel writes this type"),
        }
        Ok(())
    }
}

impl Runner for Emulator {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn empty(&self, shape: Shape, dtype: DType) -> Result<Tensor> {
        // What a kernel forgets to write shows.
        let values =
            Tensor::full(if dtype == DType::U32 { 1e9 } else { f32::NAN }, shape, &Device::Cpu)?;
        values.to_dtype(dtype)
    }

    fn launch(&self, launch: Launch, args: &[Arg]) -> Result<()> {
        let Some(grid) = launch.grid()? else { return Ok(()) };
        let name = launch.name()?;
        let mut message = Vec::new();
        let mut number = |value: u32| message.extend(value.to_le_bytes());
        number(name.len() as u32);
        message.extend(name.as_bytes());
        let mut number = |value: u32| message.extend(value.to_le_bytes());
        grid.into_iter().chain([launch.threads, args.len() as u32]).for_each(&mut number);
        for arg in args {
            match arg {
                Arg::U32(value) => message.extend([NUMBER, *value].map(u32::to_le_bytes).concat()),
                Arg::F32(value) => {
                    message.extend([REAL, value.to_bits()].map(u32::to_le_bytes).concat());
                }
                Arg::Read(tensor) | Arg::Write(tensor) => {
                    let Some((_, tag)) = TAGS.iter().find(|(dtype, _)| *dtype == tensor.dtype())
                    else {
                        candle_core::bail!("no kernel takes {:?}", tensor.dtype())
                    };
                    let bytes = bytes(tensor)?;
                    let writable = u32::from(matches!(arg, Arg::Write(_)));
                    let header = [*tag, writable, bytes.len() as u32];
                    message.extend(header.map(u32::to_le_bytes).concat());
                    message.extend(bytes);
                }
            }
        }
        // A test that failed while it held the program has said why.
        let mut program = self.program.lock().unwrap();
        let mut answer = || -> std::io::Result<()> {
            program.input.write_all(&message)?;
            program.input.flush()?;
            for arg in args {
                let Arg::Write(tensor) = arg else { continue };
                let mut bytes = vec![0; tensor.elem_count() * tensor.dtype().size_in_bytes()];
                program.output.read_exact(&mut bytes)?;
                overwrite(tensor, &bytes).map_err(std::io::Error::other)?;
            }
            Ok(())
        };
        if answer().is_err() {
            let status = program.child.wait().unwrap();
            panic!("the kernel {name} ended the emulator: {status}");
        }
        Ok(())
    }
}
