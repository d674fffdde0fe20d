#!/usr/bin/env python3
"""Scores the same multiple-choice rows with fleetune and with EleutherAI's lm-evaluation-harness.

Both get the same rows of the same files, the same prompts and the same weights, and score options by
log-likelihood, in f32 and in bf16. Prints accuracy, agreement with the harness in f32 row by row, and
rows per second; the harness's fastest precision and batch size count, and each program's fastest round.

    python3 tests/peers/compare_evaluation.py --python VENV/bin/python --data-dir DATA

The virtual environment needs lm_eval, torch and transformers. The script itself needs nothing beyond
the standard library, and `zstd`.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Suite, examples in prompts, file, and whether rows are spread over the file: MMLU's are consecutive,
# as in a whole run, where many questions of a subject follow each other.
TASKS = [
    ("fpb", 0, "fpb/sentences_50agree", True),
    ("mmlu", 0, "mmlu/test", False),
    ("mmlu", 5, "mmlu/test", False),
]


def run(command, **options):
    return subprocess.run([str(part) for part in command], check=True, **options)


def read_lines(source):
    return run(["zstd", "-dc", source], capture_output=True).stdout.decode().splitlines()


def write_rows(lines, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def export(program, model, data_dir, folder):
    """The model as the harness reads it: an adapter that changes nothing, folded in."""
    adapter, out = folder / "adapter", folder / "model"
    run([program, "train", "--model", model, "--dataset", "fingpt", "--data-dir", data_dir,
         "--max-steps", 0, "--out", adapter, "--quiet"])
    run([program, "export", "--format", "hf", "--model", model, "--adapter", adapter, "--out", out,
         "--quiet"])
    return out


def fleetune(program, options, suite, shots, data, folder, precision, number):
    out = folder / f"{suite}-{shots}-{precision}-{number}.json"
    run([program, "eval", "--model", options.model, "--suite", suite, "--data-dir", data,
         "--template", "plain", "--shots", shots, "--precision", precision, "--out", out, "--quiet"], stdout=subprocess.DEVNULL)
    result = json.loads(out.read_text())["suites"][0]
    scores = {}
    for line in out.with_suffix(".journal.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "answer" in entry:
            key, answered = entry["answer"]
            scores[int(key["id"])] = answered["answer"]["scores"]
    accuracy = next(m["value"] for m in result["metrics"] if m["name"] == "accuracy")
    return {
        "likeliest": [max(range(len(s)), key=s.__getitem__) for _, s in sorted(scores.items())],
        "accuracy": accuracy,
        "rows_per_second": result["rows_per_second"],
    }


def harness(options, model, suite, shots, file, data, folder, dtype, batch_size):
    out = folder / f"{suite}.harness.json"
    run([options.python, HERE / "harness_scores.py", "--suite", suite,
         "--rows", data / f"{file}.jsonl", "--shots", shots, "--model", model,
         "--dtype", dtype, "--batch-size", batch_size, "--out", out],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL if options.quiet else None,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")})
    return {**json.loads(out.read_text()), "dtype": dtype, "batch_size": batch_size}


def fastest(results):
    return max(results, key=lambda result: result["rows_per_second"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="Python with lm_eval, torch, transformers")
    parser.add_argument("--data-dir", type=pathlib.Path, required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rows", type=int, default=100, help="rows of each suite")
    parser.add_argument("--rounds", type=int, default=2, help="how often each program runs, in turn")
    parser.add_argument("--batch-sizes", default="1,8", help="of the harness")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of the harness; float32 must be there")
    parser.add_argument("--quiet", action="store_true", help="hide what the harness says")
    parser.add_argument("--out", type=pathlib.Path, help="write all results as JSON")
    options = parser.parse_args()
    run(["cargo", "build", "--release", "--workspace"], cwd=ROOT)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    program = target / "release" / "fleetune"
    results = {}
    print("| suite | shots | precision | rows | accuracy | lm_eval's accuracy | same answer | rows/s | lm_eval's rows/s | ratio |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        data = folder / "data"
        model = export(program, options.model, options.data_dir, folder)
        write_rows(read_lines(options.data_dir / "mmlu/dev.jsonl.zst"), data / "mmlu/dev.jsonl")
        for suite, shots, file, spread in TASKS:
            lines = read_lines(options.data_dir / f"{file}.jsonl.zst")
            step = max(1, len(lines) // options.rows) if spread else 1
            write_rows(lines[::step][:options.rows], data / f"{file}.jsonl")
            ours, theirs = {"f32": [], "bf16": []}, []
            for number in range(options.rounds):
                for precision, results_of in ours.items():
                    results_of.append(fleetune(program, options, suite, shots, data, folder, precision, number))
                for dtype in options.dtypes.split(","):
                    for batch_size in map(int, options.batch_sizes.split(",")):
                        theirs.append(harness(options, model, suite, shots, file, data, folder, dtype, batch_size))
            exact = next(result for result in theirs if result["dtype"] == "float32")
            b = fastest(theirs)
            results[f"{suite} {shots}-shot"] = {"fleetune": ours, "lm_eval": theirs}
            for precision, results_of in ours.items():
                a = fastest(results_of)
                rows = len(a["likeliest"])
                same = sum(x == y for x, y in zip(a["likeliest"], exact["likeliest"])) / rows
                error = math.sqrt(a["accuracy"] * (1 - a["accuracy"]) / rows)
                ratio = a["rows_per_second"] / b["rows_per_second"]
                print(f"| {suite} | {shots} | {precision} | {rows} | {a['accuracy']:.4f} ± {error:.4f} | "
                      f"{exact['accuracy']:.4f} | {100 * same:.1f}% | {a['rows_per_second']:.2f} | "
                      f"{b['rows_per_second']:.2f} ({b['dtype']}, batch {b['batch_size']}) | {ratio:.1f}× |",
                      flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
