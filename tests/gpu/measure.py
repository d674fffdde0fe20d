"""Runs programs with a limit of time, and watches how much memory they take."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PEERS = HERE.parent / "peers"
# Seconds between two looks at a card's memory.
LOOK = 0.005


class Failed(Exception):
    """A measurement that cannot be had, in a line."""


class Machine:
    """Where programs compute, and how they are called."""

    def __init__(self, device, limit):
        self.device = device
        self.limit = limit

    def fleetune(self, *arguments, device=None):
        """Runs fleetune to its end; `device` in place of the machine's own."""
        if self.device == "cpu":
            target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
            program = os.environ.get("FLEETUNE", target / "release" / "fleetune")
        else:
            program = HERE / "fleetune-cuda"
        return self.run([program, *arguments, "--device", device or self.device])

    def python(self, script, *arguments):
        """Runs a script with this interpreter; its last line is JSON."""
        done = self.run([sys.executable, script, *arguments])
        return json.loads(done["out"].splitlines()[-1]) | {"peak_bytes": done["peak_bytes"]}

    def run(self, command):
        """What a program prints, and the most memory that it takes: the card's, or the process's."""
        command = [str(part) for part in command]
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            with CardMemory(self.device) as card:
                # A group of its own: a limit ends all that the program has started.
                process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True,
                                           env=os.environ | {"PYTHON": sys.executable})
                over = threading.Event()
                timer = threading.Timer(self.limit, end, (process.pid, over))
                timer.start()
                try:
                    _, status, usage = os.wait4(process.pid, 0)
                except BaseException:
                    end(process.pid, over)
                    raise
                finally:
                    timer.cancel()
                process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            err.seek(0)
            if process.returncode != 0:
                raise Failed(reason(command, process.returncode, over.is_set(), self.limit, err.read()))
            peak = usage.ru_maxrss * 1024 if card.peak is None else card.peak
            return {"out": out.read(), "peak_bytes": peak}


def end(process, over):
    over.set()
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:
        pass


def reason(command, code, over, limit, err):
    """Why a program failed, in a line."""
    name = " ".join(pathlib.Path(part).name for part in command[:2])
    if over:
        return f"{name}: not done within {limit:.0f} s"
    if "out of memory" in err.lower() or "OutOfMemory" in err:
        return f"{name}: out of memory"
    lines = [line for line in err.splitlines() if line.strip()]
    lines = [line for line in lines if "error" in line.lower()] or lines
    return f"{name}: exit code {code}: {lines[-1] if lines else 'it says nothing'}"


class CardMemory:
    """The most memory that a card has in use while this is entered, beyond what it had before."""

    def __init__(self, device):
        self.peak = None if device == "cpu" else 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def __enter__(self):
        if self.peak is not None:
            self.before = used()
            self.thread.start()
        return self

    def __exit__(self, *_):
        if self.peak is not None:
            self.done.set()
            self.thread.join()

    def watch(self):
        while not self.done.wait(LOOK):
            self.peak = max(self.peak, used() - self.before)


def used():
    import torch

    free, total = torch.cuda.mem_get_info()
    return total - free


def check_machine(machine):
    """An error where something that every comparison needs is missing."""
    try:
        import peft  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise Failed(f"{error.name} is missing: start this with an interpreter that has torch, "
                     "transformers and peft") from None
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise Failed("PyTorch finds no CUDA card: try the comparison itself with --device cpu")
    try:
        machine.run([HERE / "fleetune-cuda" if machine.device == "cuda" else "true", "--version"])
        return machine.fleetune("model", "list", "--json")
    except (Failed, OSError) as error:
        raise Failed(f"{error}; FLEETUNE names the binary") from None
