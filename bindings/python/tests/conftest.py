"""A tiny model, a real server, and devices made of the library.

The server is the `fleetune` program: what FLEETUNE_PROGRAM names, else the workspace's build.
"""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
PROGRAM = os.environ.setdefault("FLEETUNE_PROGRAM", str(TARGET / "release" / "fleetune"))
#: For every wait of a test: never reached unless something hangs.
PATIENCE = 120


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not (met := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return met


class Program:
    """The program with a cache of its own."""

    def __init__(self, cache):
        self.environment = {**os.environ, "FLEETUNE_CACHE": str(cache), "FLEETUNE_LOG": "warn"}

    def run(self, *args):
        command = [PROGRAM, *map(str, args)]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *args):
        command = [PROGRAM, *map(str, args)]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)


class Server:
    """A federation, served: two rounds of one update."""

    def __init__(self, program, folder, model, training="", rounds=2, steps=3):
        folder.mkdir(parents=True)
        self.folder, self.program = folder, program
        state = folder / "state"
        (folder / "serve.toml").write_text(
            f"""
            state = "{state}"
            listen = "127.0.0.1:0"
            [[federation]]
            name = "notes"
            [federation.training]
            model = "{model}"
            sample = 1
            rounds = {rounds}
            seq_len = 320
            steps = {steps}
            batch_size = 2
            lr = 1e-2
            {training}
            [federation.rounds]
            over_selection = 1.0
            check_in = "50ms"
            """
        )
        self.process = program.start("serve", folder / "serve.toml", "--json")
        told = json.loads(self.process.stdout.readline())
        self.address = told["listening"]
        self.file = state / "adapters" / "notes" / "adapter_model.safetensors"
        self.first = wait_for(lambda: self.file.exists() and self.file.read_bytes())

    def invite(self):
        told = self.admin("invite", "--uses", "5")
        return told["join_code"]

    def admin(self, *args):
        state = self.folder / "state"
        return json.loads(self.program.run("admin", "--json", "--state", state, *args))

    def adapter(self):
        """The shared adapter's file after a round: the server writes it once it has closed one."""
        wait_for(lambda: self.file.read_bytes() != self.first)
        return self.file.read_bytes()

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE)


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    if not Path(PROGRAM).is_file():
        pytest.fail(f"{PROGRAM} is not built: `cargo build --release`")
    return Program(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def model(program):
    """The stand-in: two layers of random weights, one token a byte."""
    program.run("generate", "--model", "stand-in", "--prompt", "a", "--max-tokens", 1)
    return Path(program.environment["FLEETUNE_CACHE"]) / "models" / "stand-in"


@pytest.fixture
def serve(program, model, tmp_path):
    servers = []

    def start(name="server", **options):
        servers.append(Server(program, tmp_path / name, model, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
