"""``fleetune simulate`` from Python, with progress as it happens.

The simulation is the ``fleetune`` program's own, in a process of its own: this package finds the
program in ``FLEETUNE_PROGRAM``, else on the path.
"""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from .runs import read_run

_POLL_SECONDS = 0.2


class FleetuneNotFound(RuntimeError):
    """The ``fleetune`` program is not there."""


class SimulationFailed(RuntimeError):
    """The simulation ended with an error, which is the message."""


def find_program():
    """The ``fleetune`` program: what ``FLEETUNE_PROGRAM`` names, else the one on the path."""
    named = os.environ.get("FLEETUNE_PROGRAM")
    program = named or shutil.which("fleetune")
    if not program or not Path(program).is_file():
        where = f"FLEETUNE_PROGRAM names {named}" if named else "it is not on the path"
        raise FleetuneNotFound(
            f"the fleetune program was not found ({where}): build it with `cargo build --release` "
            "and name target/release/fleetune in FLEETUNE_PROGRAM"
        )
    return program


def simulate(config=None, *, out, on_record="print", **overrides):
    """Runs a simulation and reads its folder.

    ``config`` is a TOML file; ``overrides`` are flags of ``fleetune simulate`` (``lora_rank=8`` is
    ``--lora-rank 8``; ``True`` is the flag alone). ``on_record`` hears of every record of
    ``metrics.jsonl`` as it is written; by default each round and evaluation is printed, in a notebook
    over the one before. ``None`` is silent. An exception, Ctrl-C among them, ends the simulation;
    ``resume=True`` goes on with it.
    """
    command = [find_program(), "simulate", "--json", "--out", str(out)]
    command += [str(config)] if config is not None else []
    for name, value in overrides.items():
        if value is None or value is False:
            continue
        command.append("--" + name.replace("_", "-"))
        if value is not True:
            command.append(_text(value))
    hear = _Printer() if on_record == "print" else on_record
    log = Path(out).with_name(Path(out).name + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    metrics = _Tail(Path(out) / "metrics.jsonl")
    if overrides.get("resume"):
        metrics.skip()
    with log.open("w+") as stderr, subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=stderr, stdin=subprocess.DEVNULL
    ) as process:
        try:
            while process.poll() is None:
                metrics.tell(hear)
                time.sleep(_POLL_SECONDS)
            metrics.tell(hear)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if process.returncode != 0:
            stderr.seek(0)
            lines = stderr.read().strip().splitlines()
            raise SimulationFailed("\n".join(lines[-5:]) or f"exit code {process.returncode}")
    return read_run(out)


def _text(value):
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


class _Tail:
    """The whole lines of a file that grows."""

    def __init__(self, path):
        self._path = path
        self._at = 0

    def skip(self):
        """Passes over what is there already."""
        if self._path.exists():
            self._at = self._path.stat().st_size

    def tell(self, hear):
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            # A run that goes on drops the lines after its last checkpoint.
            self._at = min(self._at, self._path.stat().st_size)
            file.seek(self._at)
            text = file.read()
        whole = text.rfind(b"\n") + 1
        self._at += whole
        for line in text[:whole].splitlines():
            if hear and line.strip():
                hear(json.loads(line))


class _Printer:
    """Prints rounds and evaluations: a line each, in a notebook one that changes."""

    def __init__(self):
        try:
            from IPython import get_ipython
            from IPython.display import display

            self._display = display if get_ipython() else None
        except ImportError:
            self._display = None
        self._handle = None
        self._lines = []

    def __call__(self, record):
        kind = record.get("kind")
        if kind not in ("round", "evaluation"):
            return
        loss = record.get("loss")
        what = "training loss" if kind == "round" else "held-out loss"
        line = f"round {record['round']}: {what} " + ("–" if loss is None else f"{loss:.4f}")
        if self._display is None:
            print(line, flush=True)
            return
        self._lines = [*self._lines[-9:], line]
        data = {"text/plain": "\n".join(self._lines)}
        if self._handle is None:
            self._handle = self._display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)
