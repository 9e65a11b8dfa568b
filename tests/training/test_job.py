"""Jobs that torchrun starts again, and jobs of several nodes: the same command goes on with the run."""

import json
import re
import sys
from contextlib import ExitStack, suppress

import pytest
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from multipde.cli.main import main
from multipde.runtime.signals import Interrupted
from multipde.training import job
from multipde.training.step import TrainStep
from tests.faults.nodes import Nodes, num_checkpoints, wait_for
from tests.fixtures import rows_without_times, write_folder


@pytest.fixture
def restarted(monkeypatch):
    """A function that makes this process look like one that torchrun has started so many times again."""

    def set_count(count: int, nodes: int = 1) -> None:
        for name, value in (("RESTART_COUNT", count), ("MAX_RESTARTS", 3)):
            monkeypatch.setenv(f"TORCHELASTIC_{name}", str(value))
        monkeypatch.setenv("GROUP_WORLD_SIZE", str(nodes))

    return set_count


@pytest.mark.usefixtures("without_report")
def test_the_same_command_goes_on_where_its_run_was_killed(tmp_path, monkeypatch, restarted, capsys, narrow_presets):
    write_folder(tmp_path / "data")
    words = ["train", "--data", "folder", "--root", str(tmp_path / "data"), "--sizes", "8", "--epochs", "2"]
    words += ["--batch", "30", "--preset", "shapes-parabolic", "--checkpoint-every", "1e-9", "--steps", "1"]
    main([*words, "--run", str(tmp_path / "whole")])
    words += ["--run", str(tmp_path / "killed")]
    monkeypatch.setattr(sys, "argv", ["multipde", *words])  # as the record has it
    restarted(0)
    original, calls = TrainStep.__call__, []

    def step(self, *args, **options):
        calls.append(None)
        if len(calls) == 5:
            raise Interrupted("killed", 9)
        return original(self, *args, **options)

    monkeypatch.setattr(TrainStep, "__call__", step)
    with pytest.raises(SystemExit):
        main(words)
    monkeypatch.setattr(TrainStep, "__call__", original)
    restarted(1)
    with pytest.raises(SystemExit):  # another command is refused
        main([*words, "--seed", "1"])
    assert "seed must be that of the run, 0, got --seed 1; leave it out" in capsys.readouterr().err
    main(words)
    assert "resuming" in capsys.readouterr().out
    both = [tmp_path / name for name in ("whole", "killed")]
    assert (both[0] / "model.safetensors").read_bytes() == (both[1] / "model.safetensors").read_bytes()
    main(words)
    assert "is finished; nothing to do" in capsys.readouterr().out


def test_a_run_that_had_not_begun_starts_and_one_of_another_job_is_not_taken(tmp_path, restarted, monkeypatch):
    restarted(1)
    assert not job.goes_on(tmp_path / "new")
    (tmp_path / "run.json").write_text("{}")
    assert job.goes_on(tmp_path)
    restarted(0)
    assert not job.goes_on(tmp_path)  # "directory must be new or empty; type --resume"
    monkeypatch.delenv("TORCHELASTIC_MAX_RESTARTS")
    assert not job.goes_on(None)


@pytest.fixture
def noted(monkeypatch):
    """A store that all attempts of a job have in common."""
    store = HashStore()
    monkeypatch.setattr(job, "job_store", lambda: store)


@pytest.mark.usefixtures("noted")
def test_a_run_of_somebody_else_is_refused_by_every_attempt(tmp_path, restarted):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/run.json").write_text("{}")
    restarted(0)
    with pytest.raises(FileExistsError, match="directory must be new or empty"), ExitStack() as held:
        job.take_shared(tmp_path / "old", held, {"format": 3})
    restarted(1)
    assert not job.goes_on(tmp_path / "old")
    restarted(0)
    with ExitStack() as held:
        job.take_shared(tmp_path / "new", held, {"format": 3})
    restarted(1)
    assert job.goes_on(tmp_path / "new")


@pytest.mark.usefixtures("noted", "narrow_presets", "without_report")
def test_a_job_extends_its_run_once_wherever_it_is_killed(tmp_path, restarted, monkeypatch):
    write_folder(tmp_path / "data")
    words = ["train", "--data", "folder", "--root", str(tmp_path / "data"), "--run", str(tmp_path / "run")]
    restarted(0)
    main([*words, "--sizes", "8", "--epochs", "1", "--batch", "30", "--steps", "1"])
    original = job.write_extended
    extend, sizes = ["train", "--run", str(tmp_path / "run"), "--extend", "8:1"], []

    def killed_before(*args):
        raise Interrupted("killed", 9)

    def killed_within(run, record):
        before = (run / "run.json").read_bytes()
        original(run, record)
        (run / "run.json").write_bytes(before)  # it was not yet written
        killed_before()

    for attempt, write in enumerate((killed_before, killed_within, original, original)):
        restarted(attempt)
        with monkeypatch.context() as patch:
            patch.setattr(job, "write_extended", write)
            with suppress(SystemExit):
                main(extend)
        sizes.append(len(json.loads((tmp_path / "run/run.json").read_text())["levels"]))
    assert sizes == [1, 1, 2, 2]
    assert len(rows_without_times(tmp_path / "run")) == 2


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_job_that_may_start_again_needs_a_directory(restarted, nodes, capsys):
    restarted(0, nodes)
    with pytest.raises(SystemExit, match="2"):
        main(["train"])
    said = "run must be given where torchrun has several nodes or restarts, got none; type --run DIR"
    assert capsys.readouterr().err == f"multipde: {said}\n"


def test_nodes_that_do_not_share_the_directory_are_told_and_leave_nothing(tmp_path, restarted, monkeypatch):
    restarted(0, nodes=2)
    monkeypatch.setattr(job, "PATIENCE", 0.2)
    found = iter(["as rank zero wrote it", "", "", ""])
    monkeypatch.setattr(job, "record_digest", lambda file: next(found))
    advice = "run must be a directory that all nodes share, got .*, which some do not see; type --run DIR with one on a"
    with pytest.raises(ValueError, match=advice), ExitStack() as held:
        job.take_shared(tmp_path / "run", held, {"format": 3})
    assert list((tmp_path / "run").iterdir()) == []


def test_nodes_with_other_data_are_told(tmp_path, restarted, monkeypatch):
    monkeypatch.setattr(job, "from_rank_zero", lambda value: "another checksum")
    with (
        pytest.raises(ValueError, match="data must be the same on all nodes, got checksum another chec"),
        ExitStack() as s,
    ):
        job.take_shared(tmp_path / "run", s, {"provenance": {"data": {"sha256": "own"}}})


def test_a_job_on_two_nodes_survives_that_a_worker_is_killed(tmp_path):
    write_folder(tmp_path / "data")
    run = tmp_path / "run"
    words = ("--sizes", "4", "--epochs", "2", "--checkpoint-every", "0.0001", "--steps", "1", "--no-whiten")
    nodes = Nodes(tmp_path / "data", run, words, forked=True)
    try:
        assert wait_for(lambda: num_checkpoints(run) >= 3, nodes)
        assert nodes.kill(1)
        (run / "report.html").touch()  # a report that is there is not written again, which saves time
        statuses, said = nodes.end()
    finally:
        nodes.close()
    assert statuses == [0, 0], said
    assert re.search(r"exitcode: -9", said)
    assert 0 <= json.loads((run / "result.json").read_text())["test_accuracy"] <= 1
    assert [row["epoch"] for row in rows_without_times(run)] == [1, 2]
