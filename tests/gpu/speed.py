"""Tokens a second, and clients' rounds an hour, side by side with OpenFedLLM's way."""

import shutil
import statistics

from correctness import simulate
from material import write_rows
from measure import Failed
from programs import PEER, per_second

LR = 1e-4


def client_rounds(subject, results, scale, runs):
    """Clients' rounds an hour: a simulation, and PyTorch one client after the other."""
    key = f"client-rounds {subject.name}"
    if results.has(key):
        return
    steps, batch, clients = scale["steps"], scale["batch"], scale["clients"]
    count = clients * steps * batch * 20 // 19 + clients
    rows = write_rows(subject.folder / "clients.jsonl", "sft", count, subject.seq_len, 21)
    tokens = subject.tokens(rows, (steps + 1) * batch)
    ours, theirs = [], {}
    for _ in range(runs):
        out = subject.folder / "clients"
        shutil.rmtree(out, ignore_errors=True)
        done = simulate(subject, rows, out, subject.machine.device, "bf16", clients=clients, sample=clients,
                        rounds=3, steps=steps, batch_size=batch, lr=LR)
        # The first round tries how clients train fastest.
        ours += [3600 * len(one["clients"]) / one["seconds"] for one in done["rounds"][1:]]
        for name, done in peers(subject, "sft", tokens, steps + 1, batch, results).items():
            seconds = sum(step["seconds"] for step in done["steps"][1:])
            theirs.setdefault(name, []).append(3600 / seconds)
    results.add_measure(key, "client-rounds/h", f"{subject.name}, {steps} steps of {batch} rows",
                        statistics.median(ours), medians(theirs))


def tokens_per_second(subject, results, scale, runs, peak, operations):
    """Tokens a second of training, and the share of the card's peak that they take."""
    key = f"tokens/s {subject.name}"
    if results.has(key):
        return
    steps, batch = scale["steps"] + 1, scale["batch"]
    rows = write_rows(subject.folder / "rows.jsonl", "sft", steps * batch, subject.seq_len, 22)
    tokens = subject.tokens(rows, steps * batch)
    ours, theirs = [], {}
    for _ in range(runs):
        done = subject.fleetune("speed", "sft", rows, steps, batch, LR, "bf16")
        ours.append(per_second(done["steps"]))
        for name, done in peers(subject, "sft", tokens, steps, batch, results).items():
            theirs.setdefault(name, []).append(per_second(done["steps"]))
    ours, theirs = statistics.median(ours), medians(theirs)
    work = operations(tokens)
    shares = {name: rate * work / peak for name, rate in theirs.items()}
    results.add_measure(f"share {subject.name}", "of the matrix peak", f"{subject.name}, bf16",
                        ours * work / peak, shares)
    # Last: the measurement is done once this row is kept.
    results.add_measure(key, "tokens/s", f"{subject.name}, rank {subject.rank}, bf16", ours, theirs)


def peers(subject, task, tokens, steps, batch, results):
    """What each of PyTorch's variants did; one that fails is told and left out."""
    done = {}
    for name, flags in PEER.items():
        try:
            done[name] = subject.pytorch(task, tokens, steps, batch, LR, "bf16", *flags)
        except Failed as error:
            results.note(f"PyTorch, {name}: {error}")
    return done


def medians(runs):
    return {name: statistics.median(values) for name, values in runs.items()}
