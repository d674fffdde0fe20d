"""The same training on the card, on the processor, and with PyTorch + PEFT: do they agree?"""

import json
import math

from material import write_rows

BATCH, STEPS, HELD_OUT, LR = 4, 6, 8, 1e-3
TARGETS = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"

# Largest relative differences: of any step's loss, of the adapter's change (Euclidean, over all
# parameters), of the loss on held-out rows. AdamW's first steps are nearly as long for a gradient of
# 1e-9 as for one of 1, so changes differ more than losses do.
TOLERANCES = {
    "f32": {"losses": 1e-4, "adapter": 2e-2, "held-out loss": 1e-4},
    "bf16": {"losses": 1e-2, "adapter": 0.3, "held-out loss": 1e-2},
}


def check(subject, results):
    """Compares trainings of a model, for both tasks."""
    for task in ("sft", "dpo"):
        key = f"correctness {subject.name} {task}"
        if not results.has(key):
            results.add_checks(key, compare(subject, task))


def compare(subject, task):
    rows = write_rows(subject.folder / f"{task}.jsonl", task, BATCH * STEPS, subject.seq_len, 11)
    held_out = write_rows(subject.folder / f"{task}-held-out.jsonl", task, HELD_OUT, subject.seq_len, 12)

    def ours(precision, device=None):
        name = f"{task}-{precision}-{(device or 'here').replace(',', '-')}"
        done = subject.fleetune(name, task, rows, STEPS, BATCH, LR, precision, device)
        loss = subject.held_out_loss(task, held_out, HELD_OUT, done["adapter"], precision, device)
        return {"losses": losses(done), "adapter": done["adapter"], "held-out loss": loss}

    here = {precision: ours(precision) for precision in TOLERANCES}
    processor = here["f32"] if subject.machine.device == "cpu" else ours("f32", "cpu")
    out = subject.folder / f"{task}-pytorch"
    done = subject.pytorch(
        task, subject.tokens(rows, BATCH * STEPS), STEPS, BATCH, LR, "f32",
        "--held-out", subject.tokens(held_out, HELD_OUT), "--out", out)
    peer = {"losses": losses(done), "adapter": out, "held-out loss": done["held_out_loss"]}

    start = read_adapter(subject.initial())
    pairs = [("f32", "PyTorch f32", peer), ("bf16", "PyTorch f32", peer)]
    if processor is not here["f32"]:
        pairs.insert(0, ("f32", "processor f32", processor))
    for precision, name, other in pairs:
        for what, difference in differences(here[precision], other, start).items():
            yield {"name": f"{subject.name} {task}: {subject.machine.device} {precision} against {name}, {what}",
                   "value": difference, "tolerance": TOLERANCES[precision][what]}


def losses(done):
    return [step["loss"] for step in done["steps"]]


def differences(one, other, start):
    """Relative differences of two trainings that began with the adapter `start`."""
    return {
        "losses": max(relative(*pair) for pair in zip(one["losses"], other["losses"], strict=True)),
        "adapter": distance(start, read_adapter(one["adapter"]), read_adapter(other["adapter"])),
        "held-out loss": relative(one["held-out loss"], other["held-out loss"]),
    }


def relative(value, exact):
    """Infinite where a value is no number."""
    difference = abs(value - exact) / abs(exact)
    return difference if math.isfinite(difference) else math.inf


def distance(start, one, other):
    """How far two adapters are apart, as a share of the way that the second one went."""
    if one.keys() != other.keys():
        return math.inf
    apart = sum(float((one[name] - other[name]).square().sum()) for name in other)
    way = sum(float((other[name] - start[name]).square().sum()) for name in other)
    far = math.sqrt(apart / way) if way > 0 else math.inf
    return far if math.isfinite(far) else math.inf


def read_adapter(folder):
    from safetensors.torch import load_file

    tensors = load_file(str(folder / "adapter_model.safetensors"))
    return {name: tensor.double() for name, tensor in tensors.items()}


def check_fleets(subject, results):
    """Clients one after the other, in shared passes, and on two processes of one device."""
    key = f"correctness {subject.name} fleets"
    if not results.has(key):
        results.add_checks(key, compare_fleets(subject))


def compare_fleets(subject):
    rows = write_rows(subject.folder / "fleet.jsonl", "sft", 80, subject.seq_len, 13)
    device = subject.machine.device
    twice = "cpu,cpu" if device == "cpu" else f"{device},{device}"
    ways = {"alone": (device, 1), "three in a pass": (device, 3), "two processes": (twice, 1)}
    adapters = {}
    for name, (devices, per_pass) in ways.items():
        out = subject.folder / f"fleet-{name.replace(' ', '-')}"
        simulate(subject, rows, out, devices, "f32", clients=6, sample=6, rounds=2, steps=2, batch_size=2,
                 clients_per_pass=per_pass, clients_at_once=1, lr=LR)
        adapters[name] = read_adapter(out / "checkpoints" / "round-0002")
    start = read_adapter(out / "checkpoints" / "round-0000")
    # On the processor, who computes beside whom changes no bit.
    tolerance = 0.0 if device == "cpu" else 2e-2
    for name in list(ways)[1:]:
        yield {"name": f"{subject.name} fleet: {name} against alone, adapter",
               "value": distance(start, adapters[name], adapters["alone"]), "tolerance": tolerance}


def simulate(subject, rows, out, devices, precision, **settings):
    """Runs a federation anew; its records of rounds and the peak memory."""
    # A run's folder is never overwritten: one that was left half-done goes on.
    resume = ["--resume"] if (out / "config.toml").exists() else []
    flags = [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", value)]
    done = subject.machine.fleetune(
        "simulate", "--model", subject.ours, *rows, *subject.lora, "--seq-len", subject.seq_len,
        "--precision", precision, "--eval-every", 0, "--eval-rows", 4, "--answers", 0, "--holdout", 0.05,
        "--keep-checkpoints", 0, *flags, "--out", out, *resume, device=devices)
    with open(out / "metrics.jsonl") as file:
        records = [json.loads(line) for line in file]
    rounds = [record for record in records if record["kind"] == "round"]
    return {"rounds": rounds, "peak_bytes": done["peak_bytes"]}
