"""Builds the wheel with maturin, which runs `uniffi-bindgen` from the path.

The generator must be of the library's own version, so it is built from `bindings/xtask` first.
"""

import os
import subprocess
from pathlib import Path

import maturin

ROOT = Path(__file__).resolve().parents[2]


def _generator_on_path():
    manifest = ROOT / "bindings" / "xtask" / "Cargo.toml"
    command = ["cargo", "build", "--release", "--bin", "uniffi-bindgen", "--manifest-path", manifest]
    subprocess.run(command, check=True)
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "bindings" / "xtask" / "target")
    os.environ["PATH"] = f"{Path(target) / 'release'}{os.pathsep}{os.environ['PATH']}"


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _generator_on_path()
    return maturin.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory, config_settings=None):
    return maturin.build_sdist(sdist_directory, config_settings)


def get_requires_for_build_wheel(config_settings=None):
    return []


def get_requires_for_build_sdist(config_settings=None):
    return []


prepare_metadata_for_build_wheel = maturin.prepare_metadata_for_build_wheel
