#!/usr/bin/env python3
"""Matrix products of a small model, shape by shape: fleetune's kernels beside PyTorch's.

    python3 tests/peers/compare_kernels.py FLEETUNE --python VENV/bin/python

FLEETUNE is the release binary; the virtual environment needs torch. Both run in turn, several times;
the table shows medians in GFLOP/s. fleetune's weights are frozen and quantised, and decoded within the
product; PyTorch's are already in the float type of the product. The script itself needs nothing beyond
the standard library.
"""

import argparse
import json
import statistics
import subprocess
import sys

TORCH = """
import json, sys, time, torch
rows, shapes, repetitions = json.loads(sys.argv[1])
results = []
with torch.no_grad():
    for n, k in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            w = torch.randn(n, k).to(dtype)
            for transposed in (False, True):
                x = torch.randn(rows, n if transposed else k).to(dtype)
                product = (lambda: x @ w) if transposed else (lambda: x @ w.t())
                product()
                seconds = []
                for _ in range(repetitions):
                    started = time.perf_counter()
                    product()
                    seconds.append(time.perf_counter() - started)
                seconds = sorted(seconds)[repetitions // 2]
                results.append([n, k, str(dtype)[6:].replace("float32", "f32").replace("bfloat16", "bf16"),
                                transposed, 2e-9 * rows * n * k / seconds])
print(json.dumps(results))
"""


def fleetune(options):
    command = [options.program, "bench", "kernels", "--json", "--quiet", "--rows", str(options.rows),
               "--repetitions", str(options.repetitions)]
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    return {
        (p["n"], p["k"], p["weight"], p["precision"], p["transposed"]): p["gflops"]
        for p in report["products"]
    }


def pytorch(options, shapes):
    task = json.dumps([options.rows, shapes, options.repetitions])
    done = subprocess.run([options.python, "-c", TORCH, task], stdout=subprocess.PIPE, check=True, text=True)
    return {(n, k, dtype, transposed): speed for n, k, dtype, transposed, speed in json.loads(done.stdout)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--python", default=sys.executable, help="interpreter with torch")
    parser.add_argument("--rows", type=int, default=512, help="rows of the activations")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weight", default="Q4_1", help="how fleetune's weights are stored")
    options = parser.parse_args()

    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(fleetune(options))
        shapes = list(dict.fromkeys((n, k) for n, k, *_ in ours[0]))
        theirs.append(pytorch(options, shapes))

    def median(runs, key):
        return statistics.median(run[key] for run in runs)

    print("| product | weight | fleetune f32 | PyTorch f32 | fleetune bf16 | PyTorch bf16 |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for transposed, name in ((False, "X·Wᵀ"), (True, "dY·W")):
        for n, k in shapes:
            cells = []
            for dtype in ("f32", "bf16"):
                cells.append(median(ours, (n, k, options.weight, dtype, transposed)))
                cells.append(median(theirs, (n, k, dtype, transposed)))
            numbers = " | ".join(f"{cell:.0f}" for cell in cells)
            print(f"| {name} | {n:,} x {k:,} | {numbers} |")


if __name__ == "__main__":
    main()
