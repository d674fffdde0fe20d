"""Run folders of ``fleetune simulate`` and ``fleetune train`` as tables."""

import json
from dataclasses import dataclass, field
from pathlib import Path


def _flat(record, prefix=""):
    """Nested objects as columns: ``groups.news.loss``. Lists stay as they are."""
    row = {}
    for key, value in record.items():
        if isinstance(value, dict):
            row.update(_flat(value, f"{prefix}{key}."))
        else:
            row[prefix + key] = value
    return row


@dataclass
class Run:
    """A run folder: rows of plain dictionaries, one table for each kind of record."""

    folder: Path
    #: Rows by kind: ``client``, ``round``, ``evaluation``, ``suite``; ``step`` for a training.
    tables: dict = field(default_factory=dict)

    @property
    def kinds(self):
        """The kinds of record that the run has."""
        return list(self.tables)

    def rows(self, kind):
        """The rows of one kind, in the order in which they were written."""
        if kind not in self.tables:
            raise KeyError(f"{self.folder} has no {kind!r} records; it has {', '.join(self.kinds)}")
        return self.tables[kind]

    def frame(self, kind):
        """The rows of one kind as a pandas ``DataFrame``."""
        import pandas

        return pandas.DataFrame(self.rows(kind))

    def adapters(self):
        """The PEFT folders of the run's checkpoints, by round."""
        folders = (self.folder / "checkpoints").glob("round-*")
        return {int(folder.name.removeprefix("round-")): folder for folder in sorted(folders)}


def read_run(folder) -> Run:
    """Reads a run folder, also of a run that is still going on or was killed."""
    folder = Path(folder)
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no run folder: it has no metrics.jsonl")
    run = Run(folder)
    for number, record in _records(path):
        kind = record.pop("kind", "step")
        run.tables.setdefault(kind, []).append(_flat(record))
    return run


def _records(path):
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    # What follows the last line end is being written, or was torn by a kill.
    for number, line in enumerate(lines[:-1], start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not a JSON object ({error.msg})") from None
