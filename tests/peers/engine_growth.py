#!/usr/bin/env python3
"""How time and memory of a training step grow with sequence length, batch, rank and model size.

    python3 tests/peers/engine_growth.py FLEETUNE MODEL.gguf [LARGER.gguf ...]

FLEETUNE is the release binary. Each line is one process (`fleetune bench engine`); its peak memory is
held against what the memory plan foresaw. The script needs nothing beyond the standard library.
"""

import argparse
import json
import pathlib
import subprocess

BASE = {"--batch-size": 16, "--seq-len": 256, "--lora-rank": 32}
GROWTH = [
    ("--seq-len", [128, 512, 1024, 2048, 4096], {"--batch-size": 1}),
    ("--batch-size", [1, 4, 16, 64], {}),
    ("--lora-rank", [4, 8, 32, 128], {"--batch-size": 4}),
]


def measure(program, model, precision, settings, budget=None):
    command = [program, "bench", "engine", "--json", "--quiet", "--model", model, "--steps", "1",
               "--stops", "0", "--precision", precision]
    for flag, value in settings.items():
        command += [flag, str(value)]
    if budget:
        command += ["--memory-budget", budget]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def line(name, settings, result):
    if result is None:
        print(f"| {name} | {settings} | refused | | | |")
        return
    peak, planned = result["peak_rss_bytes"] / 1e6, result["planned_bytes"] / 1e6
    print(f"| {name} | {settings} | {result['tokens_per_second']:.0f} | {result['seconds_per_step']:.2f} "
          f"| {peak:.0f} | {planned:.0f} ({planned / peak - 1:+.0%}) |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("larger", nargs="*")
    parser.add_argument("--precision", default="bf16")
    options = parser.parse_args()

    print("| model | settings | tokens/s | seconds a step | peak, MB | planned, MB |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    name = pathlib.Path(options.model).stem
    for flag, values, others in GROWTH:
        for value in values:
            settings = BASE | others | {flag: value}
            text = ", ".join(f"{key[2:]} {number}" for key, number in settings.items())
            line(name, text, measure(options.program, options.model, options.precision, settings))
    one = {"--batch-size": 1, "--seq-len": 512, "--lora-rank": 32}
    for budget in ("1MiB", "256MiB"):
        result = measure(options.program, options.model, options.precision, one, budget)
        line(name, f"1 x 512, budget {budget}", result)
    for model in options.larger:
        for budget in (None, "1144MiB"):
            result = measure(options.program, model, options.precision, one, budget)
            line(pathlib.Path(model).stem, f"1 x 512, budget {budget or 'none'}", result)


if __name__ == "__main__":
    main()
