"""fleetune and PyTorch + PEFT on the same tokens: one training each."""

import json

from measure import PEERS

# PyTorch's variants, of which the better one counts.
PEER = {"padded": [], "padded, checkpointing": ["--checkpointing"]}


class Subject:
    """A model as each program reads it, with rows and an adapter to start from."""

    def __init__(self, machine, work, name, ours, theirs, rank, targets, seq_len):
        self.machine, self.name, self.ours, self.theirs = machine, name, ours, theirs
        self.rank, self.seq_len, self.folder = rank, seq_len, work / f"{name}-{targets.replace(',', '-')}-{rank}"
        self.folder.mkdir(exist_ok=True)
        self.lora = ["--lora-rank", rank, "--lora-alpha", 2 * rank, "--lora-targets", targets]

    def tokens(self, rows, count):
        """The first rows as both programs read them: a file."""
        out = self.folder / f"{rows[-1].stem}-tokens.jsonl"
        if not out.exists():
            self.machine.fleetune("data", "tokens", "--model", self.ours, *rows, "--limit", count,
                                  "--seq-len", self.seq_len, "--out", out, device="cpu")
        return out

    def initial(self):
        """A fresh adapter."""
        out = self.folder / "initial"
        if not (out / "adapter_config.json").exists():
            self.machine.fleetune("train", "--model", self.ours, *self.lora, "--max-steps", 0, "--overwrite",
                                  "--out", out, device="cpu")
        return out

    def fleetune(self, name, task, rows, steps, batch, lr, precision, device=None, adapter=None):
        """Trains in the folder `name`; steps of the journal, the adapter's folder, peak memory."""
        out = self.folder / name
        done = self.machine.fleetune(
            "train", "--model", self.ours, "--task", task, *rows, "--seq-len", self.seq_len, "--no-shuffle",
            "--init-adapter", adapter or self.initial(), "--batch-size", batch, "--lr", lr,
            "--precision", precision, "--max-steps", steps, "--overwrite", "--out", out, device=device)
        with open(out / "metrics.jsonl") as file:
            journal = [json.loads(line) for line in file]
        return {"steps": journal, "adapter": out, "peak_bytes": done["peak_bytes"]}

    def held_out_loss(self, task, rows, count, adapter, precision, device=None):
        """The loss of an adapter on held-out rows: that before a step on all of them at once."""
        scored = self.fleetune("scored", task, rows, 1, count, 1e-12, precision, device, adapter)
        return scored["steps"][0]["loss"]

    def pytorch(self, task, rows, steps, batch, lr, dtype, *flags):
        """The same with PyTorch."""
        return self.machine.python(
            PEERS / "pytorch_training.py", "--model", self.theirs, "--adapter", self.initial(),
            "--rows", rows, "--task", task, "--batch-size", batch, "--steps", steps, "--lr", lr,
            "--dtype", dtype, "--device", self.machine.device, *flags)


def per_second(steps):
    """Tokens a second, the first step left out: it warms caches up."""
    timed = steps[1:]
    return sum(step["tokens"] for step in timed) / sum(step["seconds"] for step in timed)
