#!/usr/bin/env python3
"""fleetune on a CUDA card against itself on the processor and against PyTorch + PEFT.

    FLEETUNE=./fleetune python3 tests/gpu/compare.py --out results.json
    python3 tests/gpu/compare.py --device cpu

Checks that trainings agree, measures speed and memory side by side with OpenFedLLM's way (padded
batches in bf16, one client at a time, with and without gradient checkpointing), and prints one table
with the targets beside what was measured. Needs a driver, torch, transformers, peft, and a CUDA build of
fleetune, which FLEETUNE names; the Q4_0 model takes gguf, too. No Rust. `--device cpu` is the same on
small shapes, in a minute or two, to try the comparison itself. What is measured is in --out at once;
the same command goes on after a stop.
"""

import argparse
import pathlib
import signal
import sys

import material
from correctness import TARGETS as ALL_PROJECTIONS
from correctness import check, check_fleets
from measure import HERE, Failed, Machine, check_machine
from memory import quantised_memory, step_memory
from operations import per_token
from programs import Subject
from results import Results
from speed import client_rounds, tokens_per_second

PARTS = ["correctness", "speed", "memory"]
SIZES = ["builtin", "0.5b", "1b", "7b"]
# Steps of a client's round, rows of a step, clients; the longest row; the side of the largest product.
SCALES = {
    "cuda": {"steps": 10, "batch": 16, "clients": 32, "length": 512, "product": 8192, "rank": 32},
    "cpu": {"steps": 2, "batch": 4, "clients": 4, "length": 128, "product": 1024, "rank": 8},
}
SHAPE_OF = {"builtin": "135m"}


def options_of(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=SCALES, default="cuda")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part alone; may be repeated")
    parser.add_argument("--sizes", help=f"of {','.join(SIZES)} [default: all of them]; on the processor of "
                        "tiny,builtin [default: tiny]")
    parser.add_argument("--builtin", help="the built-in model's GGUF file [default: the cache's]")
    parser.add_argument("--runs", type=int, help="runs of each program; medians count [default: 3, on the processor 1]")
    parser.add_argument("--limit", type=float, default=600, help="seconds that a program may take")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("gpu-comparison"),
                        help="folder for models and rows")
    parser.add_argument("--out", type=pathlib.Path, help="JSON with everything that was found")
    options = parser.parse_args(arguments)
    known = SIZES if options.device == "cuda" else ["tiny", "builtin"]
    usual = SIZES if options.device == "cuda" else ["tiny"]
    options.sizes = options.sizes.split(",") if options.sizes else usual
    if unknown := [size for size in options.sizes if size not in known]:
        parser.error(f"--sizes: {', '.join(unknown)} is none of {', '.join(known)}")
    if options.runs is None:
        options.runs = 3 if options.device == "cuda" else 1
    if options.runs < 1:
        parser.error("--runs: at least 1")
    return options


class Comparison:
    """The measurements, each of which may fail without the others."""

    def __init__(self, options, machine, results):
        self.options, self.machine, self.results = options, machine, results
        self.scale = SCALES[options.device]
        self.work = options.work

    def subject(self, size, rank, targets="q_proj,v_proj", ours=None):
        """A size of model for both programs."""
        if size == "builtin":
            ours = material.builtin(self.options.builtin)
            theirs = material.dequantised(ours, self.work, self.machine)
        else:
            ours = theirs = material.random_folder(size, self.work, self.machine.device)
        return Subject(self.machine, self.work, size, ours, theirs, rank, targets, self.scale["length"])

    def run(self):
        parts = self.options.only or PARTS
        peak = None
        for part in PARTS:
            if part not in parts:
                continue
            if part == "speed":
                peak = self.attempt("matrix peak", self.peaks)
            for size in self.sizes(part):
                self.attempt(f"{part} {size}", getattr(self, part), size, peak)

    def sizes(self, part):
        """Trainings of large models with random weights would agree no better and no worse."""
        if part != "correctness":
            return self.options.sizes
        return ["tiny"] + ["builtin"] * ("builtin" in self.options.sizes)

    def attempt(self, name, measure, *arguments):
        try:
            return measure(*arguments)
        except Failed as error:
            self.results.fail(name, error)
            return None

    def peaks(self):
        """The device's matrix peak: that in bf16, or in f32 where a processor is faster with it."""
        for dtype in ("bf16", "f32"):
            if not self.results.has(f"peak {dtype}"):
                found = self.machine.python(HERE / "matrix_peak.py", "--device", self.machine.device, "--dtype",
                                            dtype, "--size", self.scale["product"])
                self.results.keep(f"peak {dtype}", {"operations_per_second": found["peak"]})
                print(f"largest product in {dtype}: {found['peak'] / 1e12:.2f} TFLOP/s", flush=True)
        return max(self.results.rows[f"peak {dtype}"]["operations_per_second"] for dtype in ("bf16", "f32"))

    def correctness(self, size, _):
        check(self.subject(size, 8, ALL_PROJECTIONS), self.results)
        if size == "tiny":
            check_fleets(self.subject(size, 8), self.results)

    def speed(self, size, peak):
        subject = self.subject(size, self.scale["rank"])
        if size in ("builtin", "tiny"):
            client_rounds(subject, self.results, self.scale, self.options.runs)
        if peak:
            shape = material.SHAPES[SHAPE_OF.get(size, size)]
            tokens_per_second(subject, self.results, self.scale, self.options.runs, peak,
                              lambda tokens: per_token(shape, subject.rank, tokens))

    def memory(self, size, _):
        step_memory(self.subject(size, self.scale["rank"]), self.results, self.scale)
        if size in ("7b", "tiny"):
            quantised_memory(size, self.work, self.machine, self.results, self.scale, self.scale["rank"],
                             self.scale["length"])


def describe(device):
    """What the numbers were measured on."""
    import platform

    import torch

    card = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"device": device, "card": card, "torch": torch.__version__}


def main():
    options = options_of(sys.argv[1:])
    # Ends the programs at work, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    machine = Machine(options.device, options.limit)
    try:
        check_machine(machine)
        settings = describe(options.device) | {"runs": options.runs, **SCALES[options.device]}
        results = Results(options.out, settings)
        if "builtin" in options.sizes:
            material.builtin(options.builtin)
        options.work.mkdir(parents=True, exist_ok=True)
    except (Failed, ValueError) as error:
        sys.exit(f"compare.py: {error}")
    try:
        Comparison(options, machine, results).run()
    except KeyboardInterrupt:
        sys.exit("compare.py: stopped; what was measured is kept where --out is given")
    print(f"\n{settings['card']}, PyTorch {settings['torch']}, medians of {options.runs} runs\n")
    print(results.table())
    sys.exit(0 if results.passed() else 1)


if __name__ == "__main__":
    main()
