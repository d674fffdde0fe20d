//! `fleetune bench`: what this machine can do.

mod server;

use std::time::{Duration, Instant};

use candle_core::quantized::GgmlDType;
use clap::{Args, Subcommand};
use fleetune_core::adapter::{Adapter, LoraConfig, Target};
use fleetune_core::data::TokenizedExample;
use fleetune_core::device::pass_cost;
use fleetune_core::kernels::{KernelSpeeds, Precision, ProductShape, SMOLLM2_135M, measure};
use fleetune_core::memory::{Workload, plan};
use fleetune_core::model::{CancelToken, EngineError, ModelConfig};
use fleetune_core::train::{TrainError, TrainOptions, Trainer};
use indicatif::HumanBytes;
use serde::Serialize;

use super::engine::EngineArgs;
use super::{CommandError, CommandResult, Context, values};
use crate::progress::{Progress, Unit};
use crate::system;
use crate::training::ComputePrecision;

/// Arguments of `fleetune bench`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, after_help = "Example:\n  fleetune bench engine")]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Measure training: tokens/s, GFLOP/s, share of the matrix peak, peak memory
    #[command(after_help = "\
Examples:
  fleetune bench engine
  fleetune bench engine --precision bf16 --batch-size 16 --seq-len 256 --lora-rank 32 --json")]
    Engine(EngineBenchArgs),
    /// Measure matrix products, shape by shape
    #[command(after_help = "Example:\n  fleetune bench kernels --rows 512 --threads 2")]
    Kernels(KernelBenchArgs),
    /// Measure a server under the load of many devices, over loopback
    #[command(after_help = "Example:\n  fleetune bench server --devices 2000")]
    Server(server::ServerBenchArgs),
}

#[derive(Debug, Args)]
struct EngineBenchArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// Sequences of a step
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = values::at_least_one)]
    batch_size: usize,
    /// Tokens of each sequence
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = values::at_least_two)]
    seq_len: usize,
    /// Rank of the adapter on q_proj and v_proj
    #[arg(long, value_name = "R", default_value_t = 32)]
    lora_rank: usize,
    /// Steps to measure, after one to warm up
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = values::at_least_one)]
    steps: usize,
    /// The most memory to take, base model included, such as 512MiB
    #[arg(long, value_name = "SIZE", value_parser = values::bytes)]
    memory_budget: Option<u64>,
    /// How often to stop a step on its way, to see how long that takes
    #[arg(long, value_name = "N", default_value_t = 9)]
    stops: usize,
}

#[derive(Debug, Args)]
struct KernelBenchArgs {
    /// Rows of the activations
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = values::at_least_one)]
    rows: usize,
    /// Repetitions of each product
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = values::at_least_one)]
    repetitions: usize,
}

/// Runs `fleetune bench`.
///
/// # Errors
/// When the model cannot be used or a measurement fails.
pub fn run(args: BenchArgs, ctx: &Context) -> CommandResult {
    match args.command {
        BenchCommand::Engine(args) => engine(&args, ctx),
        BenchCommand::Kernels(args) => kernels(&args, ctx),
        BenchCommand::Server(args) => server::run(&args, ctx),
    }
}

/// How fast training was.
#[derive(Debug, Serialize)]
struct EngineSpeed {
    cpu: Option<String>,
    threads: usize,
    model: String,
    precision: String,
    batch_size: usize,
    seq_len: usize,
    lora_rank: usize,
    /// Median over the steps.
    seconds_per_step: f64,
    tokens_per_second: f64,
    /// Billions of additions and multiplications that a step needs, without recomputation.
    gflop_per_step: f64,
    gflops: f64,
    /// The fastest large matrix product of this machine, at this precision.
    peak_gflops: f64,
    share_of_peak: f64,
    peak_rss_bytes: Option<u64>,
    planned_bytes: u64,
    /// From the wish to stop, at moments spread over a step, to standing still: median and longest.
    stop_seconds: Option<f64>,
    longest_stop_seconds: Option<f64>,
}

fn engine(args: &EngineBenchArgs, ctx: &Context) -> CommandResult {
    let interrupt = ctx.interrupt();
    let engine = args.engine.open(ctx)?;
    let config = &engine.model.config;
    let lora = LoraConfig::new(
        args.lora_rank,
        2.0 * args.lora_rank as f64,
        &[Target::QProj, Target::VProj],
    )
    .map_err(CommandError::usage)?;
    let files = engine.model.files().iter();
    let workload = Workload {
        model: config,
        model_bytes: files.filter_map(|path| Some(path.metadata().ok()?.len())).sum(),
        lora: &lora,
        extra_adapters: 0,
        shortest: args.seq_len,
        longest: args.seq_len,
        batch: args.seq_len * args.batch_size,
        target_share: 1.0,
        clients: 1,
        pass_cost: pass_cost(engine.decoder.device()),
        threads: rayon::current_num_threads(),
    };
    let memory = plan(&workload, args.memory_budget).map_err(CommandError::usage)?;
    let adapter = Adapter::new(lora.clone(), config, 0).map_err(CommandError::usage)?;
    let options = TrainOptions::default().with_plan(&memory);
    let trainer = Trainer::new(&engine.decoder, adapter, options)?;
    let mut trainer = trainer.with_cancel(interrupt.cancel_token());
    let batch = batch(config, args);
    let progress = Progress::new("train", Some(args.steps as u64 + 1), Unit::Items("steps"));
    let mut seconds = Vec::with_capacity(args.steps);
    for step in 0..=args.steps {
        if interrupt.is_set() {
            return Err(CommandError::Interrupted("nothing was measured to the end".to_owned()));
        }
        let started = Instant::now();
        trainer.step(&batch, 1e-4)?;
        if step > 0 {
            seconds.push(started.elapsed().as_secs_f64());
        }
        progress.advance(1);
    }
    progress.finish();
    let peak_rss_bytes = system::peak_rss_bytes();
    let seconds_per_step = median(&mut seconds);
    let mut stops = measure_stops(trainer, &batch, seconds_per_step, args.stops)?;
    let precision = args.engine.precision;
    let peak_gflops = matrix_peak(precision)?;
    let gflop_per_step = flops(config, &lora, args) * 1e-9;
    let gflops = gflop_per_step / seconds_per_step;
    let speed = EngineSpeed {
        cpu: system::cpu_name(),
        threads: rayon::current_num_threads(),
        model: args.engine.model().to_owned(),
        precision: format!("{precision:?}").to_lowercase(),
        batch_size: args.batch_size,
        seq_len: args.seq_len,
        lora_rank: args.lora_rank,
        seconds_per_step,
        tokens_per_second: workload.batch as f64 / seconds_per_step,
        gflop_per_step,
        gflops,
        peak_gflops,
        share_of_peak: gflops / peak_gflops,
        peak_rss_bytes,
        planned_bytes: memory.peak_bytes,
        stop_seconds: (!stops.is_empty()).then(|| median(&mut stops)),
        longest_stop_seconds: stops.iter().copied().max_by(f64::total_cmp),
    };
    Ok(ctx.result(&speed, || engine_table(&speed))?)
}

/// Stops steps that take about `step_seconds` at different moments, and times how long each goes on.
fn measure_stops(
    mut trainer: Trainer<'_>,
    batch: &[TokenizedExample],
    step_seconds: f64,
    count: usize,
) -> Result<Vec<f64>, CommandError> {
    let mut stops = Vec::new();
    for i in 0..count {
        let cancel = CancelToken::default();
        trainer = trainer.with_cancel(cancel.clone());
        let moment = Duration::from_secs_f64(step_seconds * (i as f64 + 0.5) / count as f64);
        let asked = std::thread::spawn(move || {
            std::thread::sleep(moment);
            cancel.cancel();
            Instant::now()
        });
        let ended = trainer.step(batch, 1e-4);
        let stopped = Instant::now();
        let asked =
            asked.join().map_err(|_| anyhow::anyhow!("the thread that stops steps failed"))?;
        match ended {
            // Over before it was asked to stop.
            Ok(_) => {}
            Err(TrainError::Engine(EngineError::Cancelled)) => {
                stops.push((stopped - asked).as_secs_f64());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(stops)
}

/// The middle value; zero of none.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Sequences of arbitrary tokens, all of them supervised.
fn batch(config: &ModelConfig, args: &EngineBenchArgs) -> Vec<TokenizedExample> {
    let token = |row: usize, i: usize| ((row * 7919 + i * 104_729) % config.vocab_size) as u32;
    let example = |row| TokenizedExample {
        ids: (0..args.seq_len).map(|i| token(row, i)).collect(),
        supervised: vec![true; args.seq_len],
    };
    (0..args.batch_size).map(example).collect()
}

/// Floating-point operations that a step cannot do without: two per weight and token forward, two
/// backward (frozen weights have no gradient of their own), attention likewise, and six per weight
/// of the adapter. The first layer's input needs no gradient, which is neglected.
fn flops(config: &ModelConfig, lora: &LoraConfig, args: &EngineBenchArgs) -> f64 {
    let size = |(output, input): (usize, usize)| (output * input) as f64;
    let projections: f64 = Target::ALL.iter().map(|&t| size(config.projection_shape(t))).sum();
    let adapted = lora.targets.iter().map(|&target| {
        let (output, input) = config.projection_shape(target);
        (lora.rank * (output + input)) as f64
    });
    let tokens = (args.batch_size * args.seq_len) as f64;
    // Scores and their products with the values, of which the causal mask leaves half.
    let attention = config.query_size() as f64 * args.seq_len as f64;
    let head = (config.vocab_size * config.hidden_size) as f64;
    let layer = 4.0 * projections + 6.0 * adapted.sum::<f64>() + 6.0 * attention;
    tokens * (config.num_layers as f64 * layer + 4.0 * head)
}

fn matrix_peak(precision: ComputePrecision) -> Result<f64, CommandError> {
    let speeds = measure(&[], &[], 5, |_, _| {})?;
    Ok(match precision {
        ComputePrecision::F32 => speeds.peak_f32,
        ComputePrecision::Bf16 => speeds.peak_bf16,
    })
}

fn engine_table(speed: &EngineSpeed) -> String {
    let mut lines = vec![
        format!(
            "{}, {} threads",
            speed.cpu.as_deref().unwrap_or("unknown processor"),
            speed.threads
        ),
        format!(
            "{}, {}: {} sequences of {} tokens, rank {}",
            speed.model, speed.precision, speed.batch_size, speed.seq_len, speed.lora_rank
        ),
        format!("  tokens/s        {:.1}", speed.tokens_per_second),
        format!("  seconds a step  {:.3}", speed.seconds_per_step),
        format!(
            "  GFLOP/s         {:.1} ({:.0} % of the {:.1} of a large matrix product)",
            speed.gflops,
            100.0 * speed.share_of_peak,
            speed.peak_gflops
        ),
    ];
    let planned = HumanBytes(speed.planned_bytes);
    if let (Some(median), Some(longest)) = (speed.stop_seconds, speed.longest_stop_seconds) {
        let (median, longest) = (1e3 * median, 1e3 * longest);
        lines.push(format!("  stops within    {median:.0} ms (longest {longest:.0} ms)"));
    }
    lines.push(match speed.peak_rss_bytes {
        Some(peak) => format!("  peak memory     {} (planned {planned})", HumanBytes(peak)),
        None => format!("  planned memory  {planned}"),
    });
    lines.join("\n")
}

/// One measured product.
#[derive(Debug, Serialize)]
struct ProductLine {
    m: usize,
    n: usize,
    k: usize,
    weight: String,
    precision: &'static str,
    transposed: bool,
    gflops: f64,
}

#[derive(Debug, Serialize)]
struct KernelReport {
    cpu: Option<String>,
    instructions: &'static str,
    threads: usize,
    peak_f32_gflops: f64,
    peak_bf16_gflops: f64,
    products: Vec<ProductLine>,
}

fn kernels(args: &KernelBenchArgs, ctx: &Context) -> CommandResult {
    let shapes = SMOLLM2_135M.map(|(n, k)| ProductShape { m: args.rows, n, k });
    let formats = [GgmlDType::F32, GgmlDType::Q4_1, GgmlDType::Q8_0];
    let mut progress: Option<Progress> = None;
    let speeds = measure(&shapes, &formats, args.repetitions, |_, total| {
        progress
            .get_or_insert_with(|| {
                Progress::new("measure", Some(total as u64), Unit::Items("products"))
            })
            .advance(1);
    })?;
    if let Some(progress) = progress {
        progress.finish();
    }
    let report = kernel_report(&speeds);
    Ok(ctx.result(&report, || kernel_table(&report))?)
}

fn kernel_report(speeds: &KernelSpeeds) -> KernelReport {
    let products = speeds.products.iter().map(|product| ProductLine {
        m: product.shape.m,
        n: product.shape.n,
        k: product.shape.k,
        weight: format!("{:?}", product.format),
        precision: match product.precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        },
        transposed: product.transposed,
        gflops: product.gflops,
    });
    KernelReport {
        cpu: system::cpu_name(),
        instructions: speeds.instructions.name(),
        threads: speeds.threads,
        peak_f32_gflops: speeds.peak_f32,
        peak_bf16_gflops: speeds.peak_bf16,
        products: products.collect(),
    }
}

fn kernel_table(report: &KernelReport) -> String {
    let mut lines = vec![
        format!(
            "{}, {} threads, {}",
            report.cpu.as_deref().unwrap_or("unknown processor"),
            report.threads,
            report.instructions
        ),
        format!(
            "largest product: {:.1} GFLOP/s in f32, {:.1} in bf16",
            report.peak_f32_gflops, report.peak_bf16_gflops
        ),
        format!(
            "{:>6} {:>6} {:>6}  {:<5} {:<5} {:<8} {:>8}",
            "m", "n", "k", "W", "in", "", "GFLOP/s"
        ),
    ];
    lines.extend(report.products.iter().map(|p| {
        let direction = if p.transposed { "dY·W" } else { "X·Wᵀ" };
        format!(
            "{:>6} {:>6} {:>6}  {:<5} {:<5} {direction:<8} {:>8.1}",
            p.m, p.n, p.k, p.weight, p.precision, p.gflops
        )
    }));
    lines.join("\n")
}
