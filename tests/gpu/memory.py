"""The most memory that a training step takes: rows of full length, base model and all."""

import json

from material import random_gguf
from measure import Failed
from programs import PEER


def step_memory(subject, results, scale):
    """Both programs on the same shapes."""
    key = f"memory {subject.name}"
    if results.has(key):
        return
    batch, length = scale["batch"], subject.seq_len
    rows = subject.folder / "full.jsonl"
    ids = [[(row * 7919 + i * 104729) % 250 + 2 for i in range(length)] for row in range(batch)]
    rows.write_text("".join(json.dumps({"input_ids": row, "labels": row}) + "\n" for row in ids))
    theirs = {}
    for name, flags in PEER.items():
        try:
            done = subject.pytorch("sft", rows, 1, batch, 1e-4, "bf16", *flags)
            theirs[name] = done["peak_bytes"]
        except Failed as error:
            results.note(f"PyTorch, {name}: {error}")
    results.add_measure(key, "bytes", f"{subject.name}, {batch} x {length}, bf16",
                        bench(subject.machine, subject.ours, subject.rank, batch, length), theirs)


def quantised_memory(name, work, machine, results, scale, rank, length):
    """A base in Q4_0, which PyTorch's way has no counterpart of."""
    key = f"memory {name} q4_0"
    if results.has(key):
        return
    model = random_gguf(name, work, machine)
    peak = bench(machine, model, rank, scale["batch"], length)
    results.add_measure(key, "bytes", f"{name} in Q4_0, {scale['batch']} x {length}, bf16", peak, {})


def bench(machine, model, rank, batch, length):
    done = machine.fleetune("bench", "engine", "--model", model, "--precision", "bf16", "--batch-size", batch,
                            "--seq-len", length, "--lora-rank", rank, "--steps", 1, "--stops", 0, "--json")
    # On the processor, the bench's own peak: that of the process counts its large products, too.
    return json.loads(done["out"])["peak_rss_bytes"] if machine.device == "cpu" else done["peak_bytes"]
