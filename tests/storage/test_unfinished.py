"""Runs that were killed or damaged at an unlucky place are still read and taken up."""

import json

import pytest
import torch

from multipde import Level, Schedule, load, resume
from multipde.storage.run_directory import checkpoints_of
from multipde.training.checkpoint import read_newest
from tests.fixtures import load_unfinished
from tests.storage.test_links import run, stopped  # noqa: F401


@pytest.mark.parametrize("gone", [(), ("config.json",), ("config.json", "model.safetensors")])
def test_a_run_that_was_killed_in_its_last_writes_is_loaded_from_its_checkpoint(gone, tmp_path):
    finished = run(tmp_path / "run")
    weights = load(finished).state_dict()
    for name in ("result.json", "SHA256SUMS", *gone):
        (finished / name).unlink()
    torch.testing.assert_close(load_unfinished(finished).state_dict(), weights, rtol=0, atol=0)
    resume(finished, quiet=True)
    torch.testing.assert_close(load(finished).state_dict(), weights, rtol=0, atol=0)


def test_a_checkpoint_whose_number_is_damaged_is_no_copy(stopped, capsys):  # noqa: F811
    (newest,) = checkpoints_of(stopped)[:1]
    record = json.loads((newest / "trainer.json").read_text())
    record["state"]["checkpoints"] += 1
    (newest / "trainer.json").write_text(json.dumps(record))
    assert checkpoints_of(stopped)[0] == newest
    resume(stopped)
    said = capsys.readouterr().out
    assert f"note: {newest}/trainer.json must have its checksum in SHA256SUMS, got another: it is damaged" in said


def test_no_checkpoint_is_told_in_one_line():
    with pytest.raises(ValueError, match="run must have a checkpoint, got none"):
        read_newest([], Schedule([Level(8, 1)]))


@pytest.mark.parametrize("written", ["", "p", "proces", "process ", "process 7"])
def test_a_run_that_was_killed_while_it_wrote_its_lock_is_begun_again(written, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").write_text(written)
    assert (run(tmp_path / "run") / "result.json").exists()
