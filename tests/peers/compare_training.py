#!/usr/bin/env python3
"""Trains the same adapter on the same rows in turn with fleetune and with PyTorch + PEFT.

Prints a table of tokens per second (padding not counted), peak memory and the loss per step, and
writes everything as JSON. Every round runs each program once; the table shows medians over rounds.
PyTorch runs in f32 and bf16, with and without gradient checkpointing; the fastest counts.

    python3 tests/peers/compare_training.py --python VENV/bin/python --data-dir DATA --task sft

The virtual environment needs torch, transformers, peft and gguf. The first step of each run warms
caches up and is not timed. The script needs nothing beyond the standard library.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TASKS = {
    "sft": {"dataset": "code-alpaca", "template": "alpaca", "batch": 16},
    "dpo": {"dataset": "hh-rlhf", "template": "vicuna", "batch": 8},
}


def run(command, **options):
    return subprocess.run([str(part) for part in command], check=True, cwd=ROOT, **options)


def prepare(options, task, folder):
    """Builds the programs and writes the token ids and the initial adapter all of them start from."""
    run(["cargo", "build", "--release", "--workspace", "--bins"])
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
    rows = folder / "rows.jsonl"
    count = (options.steps + 1) * task["batch"]
    run([target / "fleetune", "data", "tokens", "--model", options.model, "--dataset", task["dataset"],
         "--data-dir", options.data_dir, "--template", task["template"], "--seq-len", options.seq_len,
         "--limit", count, "--out", rows])
    adapter = folder / "initial"
    run(fleetune_command(options, task, target, adapter, "f32") + ["--max-steps", 0])
    return target, rows, adapter


def fleetune_command(options, task, target, out, precision):
    return [
        target / "fleetune", "train", "--model", options.model, "--task", options.task,
        "--dataset", task["dataset"], "--data-dir", options.data_dir, "--template", task["template"],
        "--lora-rank", 32, "--lora-alpha", 64, "--lora-targets", "q_proj,v_proj",
        "--seq-len", options.seq_len, "--batch-size", task["batch"], "--lr", "1e-4",
        "--precision", precision, "--no-shuffle", "--out", out,
    ]


def fleetune(options, task, target, adapter, folder, precision):
    out = folder / f"out-{precision}"
    command = fleetune_command(options, task, target, out, precision)
    command += ["--init-adapter", adapter, "--max-steps", options.steps + 1, "--overwrite"]
    run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(out / "metrics.jsonl") as file:
        steps = [json.loads(line) for line in file]
    return {"steps": steps, "peak_rss_bytes": max(step["peak_rss_bytes"] for step in steps)}


def pytorch(options, task, rows, adapter, dtype, checkpointing):
    command = [
        options.python, HERE / "pytorch_training.py", "--model", options.model, "--adapter", adapter,
        "--rows", rows, "--task", options.task, "--batch-size", task["batch"],
        "--steps", options.steps + 1, "--dtype", dtype,
    ]
    command += ["--checkpointing"] if checkpointing else []
    done = run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def tokens_per_second(result):
    timed = result["steps"][1:]
    return sum(step["tokens"] for step in timed) / sum(step["seconds"] for step in timed)


def largest_difference(result, exact):
    pairs = zip(result["steps"], exact["steps"])
    return max(abs(step["loss"] / other["loss"] - 1) for step, other in pairs)


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter with torch, transformers, peft, gguf")
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--task", choices=TASKS, default="sft")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2, help="timed steps a run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default="f32,bf16,bf16+checkpointing",
                        help="PyTorch variants: f32, bf16, each with or without +checkpointing")
    parser.add_argument("--out", type=pathlib.Path, help="JSON with every measurement")
    options = parser.parse_args()
    task = TASKS[options.task]

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        target, rows, adapter = prepare(options, task, folder)
        for _ in range(options.rounds):
            for precision in ("f32", "bf16"):
                result = fleetune(options, task, target, adapter, folder, precision)
                results.setdefault(f"fleetune {precision}", []).append(result)
            for peer in options.peers.split(","):
                dtype, _, checkpointing = peer.partition("+")
                result = pytorch(options, task, rows, adapter, dtype, bool(checkpointing))
                results.setdefault(f"PyTorch {peer}", []).append(result)

    speed = {name: statistics.median(map(tokens_per_second, runs)) for name, runs in results.items()}
    memory = {
        name: statistics.median(run["peak_rss_bytes"] for run in runs) for name, runs in results.items()
    }
    best = max((name for name in speed if name.startswith("PyTorch")), key=speed.get)
    print(f"{options.task}, {task['batch']} rows of at most {options.seq_len} tokens, rank 32 on q_proj "
          f"and v_proj, {os.cpu_count()} cores of {processor()}; medians of {options.rounds} rounds\n")
    print("| program | tokens/s | against the best PyTorch | peak memory | of its | loss per step |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for name, runs in results.items():
        losses = ", ".join(f"{step['loss']:.4f}" for step in runs[0]["steps"])
        print(f"| {name} | {speed[name]:.0f} | {speed[name] / speed[best]:.2f}x "
              f"| {memory[name] / 1e9:.2f} GB | {memory[name] / memory[best]:.0%} | {losses} |")
    exact = results.get("PyTorch f32")
    for name, runs in results.items():
        if exact and name.startswith("fleetune"):
            print(f"\n{name}: losses differ from PyTorch f32's by at most "
                  f"{largest_difference(runs[0], exact[0]):.4%} in {options.steps + 1} steps")
    if options.out:
        options.out.write_text(json.dumps({"options": vars(options) | {"out": None}, "processor": processor(),
                                           "results": results}, default=str, indent=1))


if __name__ == "__main__":
    main()
