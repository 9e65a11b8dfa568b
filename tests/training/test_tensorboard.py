"""Event files: read back they are the rows of the run, each once, also after interruptions."""

import json
import shutil
import signal
import sys

import numpy as np
import pytest
import torch

from multipde import Level, NetworkConfig, Schedule, TrainSettings, load, resume, train
from multipde.runtime.signals import Interrupted
from multipde.storage.rows import read_metrics
from multipde.training import tensorboard, trackers
from multipde.training.snapshot import read_snapshots

NETWORK = NetworkConfig("hamiltonian", (4,), 6, steps=1, size=16)
SCHEDULE = Schedule([Level(8, 2, batch=40), Level(16, 2, batch=40)])
OPTIONS = {"num_train": 150, "num_test": 30}
SETTINGS = TrainSettings(transfer="copy", calibration_images=60, device="cpu", tensorboard=True)


def run(directory):
    return train(NETWORK, SCHEDULE, "shapes", directory, settings=SETTINGS, data_options=OPTIONS, quiet=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("board") / "a").directory


def events(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory / tensorboard.FOLDER), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


def check(directory):
    """All scalars and pictures are there once, and are those of the metrics file."""
    rows, read = read_metrics(directory / "metrics.jsonl"), events(directory)
    assert len(rows) == 4
    for tag, key in tensorboard.SCALARS.items():
        scalars = read.Scalars(tag)
        assert [s.step for s in scalars] == [1, 2, 3, 4]
        np.testing.assert_allclose([s.value for s in scalars], [row[key] for row in rows], rtol=1e-6)
    work = read.Scalars("work/accuracy_validation")
    assert [s.step for s in work] == [round(row["total_flops"] / 1e9) for row in rows]
    assert [s.value for s in work] == [s.value for s in read.Scalars("accuracy/validation")]
    seconds = [row["total_seconds"] - rows[0]["total_seconds"] for row in rows]
    np.testing.assert_allclose([s.wall_time - work[0].wall_time for s in work], seconds, atol=0.1)
    assert [i.step for i in read.Images("opening/stencils")] == [2, 4]
    assert [i.step for i in read.Images("confusion/validation")] == [2, 4]
    assert [i.step for i in read.Images("confusion/test")] == [4]


def test_events_are_the_rows_of_the_run(finished):
    check(finished)


def test_a_resumed_run_has_no_step_twice(finished, tmp_path, signal_at_step):
    signal_at_step(8, signal.SIGTERM)
    with pytest.raises(Interrupted):
        run(tmp_path / "b")
    signal_at_step(None)
    lost = tmp_path / "b/metrics.jsonl"  # with a row whose checkpoint was never written
    lost.write_text(lost.read_text() + lost.read_text().splitlines()[-1] + "\n")
    resume(tmp_path / "b", quiet=True)
    check(tmp_path / "b")
    for name in ("level-1-8px.safetensors", "level-2-16px.safetensors"):
        assert (tmp_path / "b" / name).read_bytes() == (finished / name).read_bytes()


def test_snapshots_are_of_the_best_weights_and_of_all_validation_images(finished):
    net, rows = load(finished), read_metrics(finished / "metrics.jsonl")
    snapshots = read_snapshots(finished, net.config, [8, 16])
    assert [s.rows for s in snapshots.values()] == [2, 4]
    assert torch.equal(snapshots[1].stencils, net.opening[0].weight)
    for snapshot, row in zip(snapshots.values(), (rows[1], rows[3]), strict=True):
        assert snapshot.confusion.sum() == 30
        assert snapshot.confusion.trace().item() == pytest.approx(30 * row["validation_accuracy"])


def test_damaged_snapshots_are_refused(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "b")
    (tmp_path / "b/level-1-8px.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="level-1-8px.safetensors must be a safetensors file, got"):
        read_snapshots(tmp_path / "b", load(finished).config, [8, 16])


def test_nothing_is_begun_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="tensorboard must be installed for --track .*; type pip install"):
        run(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("event", ["row", "level", "tested"])
def test_a_training_goes_on_when_tensorboard_fails_in_any_call(event, finished, tmp_path, monkeypatch, capsys):
    def fail(self, *given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorboard.Board, event, fail)
    train(NETWORK, SCHEDULE, "shapes", tmp_path / "b", settings=SETTINGS, data_options=OPTIONS)
    shown = capsys.readouterr().out
    assert shown.count("note: TensorBoard is not written any more: [Errno 28] No space left on device") == 1
    assert len(read_metrics(tmp_path / "b/metrics.jsonl")) == 4
    assert (tmp_path / "b/model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_a_run_is_resumed_without_it(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished, tmp_path / "b")
    (tmp_path / "b/result.json").unlink()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # not installed
    resume(tmp_path / "b")
    assert "note: TensorBoard is not written any more: import of torch.utils.tensorboard" in capsys.readouterr().out
    assert (tmp_path / "b/result.json").exists()


def test_a_run_without_it_writes_none(finished, tmp_path):
    record = json.loads((finished / "run.json").read_text())
    assert record["settings"]["tensorboard"] is True
    (tmp_path / "b").mkdir()
    record["settings"].pop("tensorboard")  # as an older version wrote it
    (tmp_path / "b/run.json").write_text(json.dumps(record))
    resume(tmp_path / "b", quiet=True)
    assert not (tmp_path / "b" / tensorboard.FOLDER).exists()
    assert (tmp_path / "b/model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
