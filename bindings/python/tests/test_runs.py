"""Run folders as tables, and simulations from Python."""

import fleetune
import pytest
from fleetune import FleetuneNotFound, SimulationFailed, read_run, simulate

SMALL = {
    "model": "stand-in",
    "dataset": "demo",
    "clients": 2,
    "sample": 2,
    "rounds": 2,
    "steps": 1,
    "batch_size": 2,
    "seq_len": 320,
    "lora_rank": 4,
}


@pytest.fixture(scope="module")
def run(program, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("FLEETUNE_CACHE", program.environment["FLEETUNE_CACHE"])
    heard = []
    folder = tmp_path_factory.mktemp("runs") / "small"
    yield simulate(out=folder, on_record=heard.append, **SMALL), heard
    patch.undo()


def test_a_simulation_is_heard_as_it_happens_and_read_as_tables(run):
    run, heard = run
    assert {record["kind"] for record in heard} >= {"client", "round", "evaluation"}
    assert [row["round"] for row in run.rows("round")] == [1, 2]
    assert len(run.rows("client")) == 4
    assert sorted(run.adapters())[-1] == 2
    assert len(heard) == sum(len(rows) for rows in run.tables.values())


def test_tables_are_pandas_frames(run):
    pandas = pytest.importorskip("pandas")
    frame = run[0].frame("client")
    assert isinstance(frame, pandas.DataFrame)
    assert frame.groupby("round").loss.mean().notna().all()
    with pytest.raises(KeyError, match="it has"):
        run[0].frame("weather")


def test_a_run_that_is_still_written_or_torn_is_read_and_damage_is_told(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind":"round","round":1,"product":{"rank":2}}\n{"kind":"rou')
    assert read_run(tmp_path).rows("round") == [{"round": 1, "product.rank": 2}]
    path.write_text('{"step":1,"loss":2.5}\nnonsense\n')
    with pytest.raises(ValueError, match="metrics.jsonl:2"):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="no run folder"):
        read_run(tmp_path / "elsewhere")


def test_a_simulation_that_fails_says_why(program, tmp_path, monkeypatch):
    with pytest.raises(SimulationFailed, match="weather"):
        simulate(out=tmp_path / "run", dataset="weather", model="stand-in")
    monkeypatch.setenv("FLEETUNE_PROGRAM", str(tmp_path / "nothing"))
    with pytest.raises(FleetuneNotFound, match="FLEETUNE_PROGRAM"):
        fleetune.find_program()
