"""Federated fine-tuning of language models on this device.

The classes are those of the Kotlin and Swift libraries (:mod:`fleetune.fleetune_ffi`); this package
adds what Python expects: context managers, async iterators, run folders as tables, simulations with
live progress.

>>> async with fleetune.opened("model.gguf", "app-data") as app:
...     await app.examples.add(Example(instruction="Reply: …", response="Gladly!"))
...     async for piece in app.stream("Reply: …"):
...         print(piece, end="")
"""

from .app import App, FolderStorage, events, opened
from .fleetune_ffi import *  # noqa: F401,F403
from .runs import Run, read_run
from .simulation import FleetuneNotFound, SimulationFailed, find_program, simulate

__version__ = library_version()  # noqa: F405
