"""Directories with the next free number: each is taken by one training, also at the same moment."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from multipde.storage.free_directory import free_directory


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_trainings_that_start_at_the_same_time_have_a_directory_each(tmp_path):
    (tmp_path / "runs/shapes-resnet-2").mkdir(parents=True)
    with ExitStack() as held, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: held.enter_context(free_directory("shapes", "resnet")), range(8)))
    numbers = sorted(int(path.name.rpartition("-")[2]) for path in found)
    assert numbers == [1, *range(3, 10)]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["shapes-resnet-2"]


def test_a_start_that_fails_leaves_nothing_and_a_training_its_files(tmp_path):
    with free_directory("shapes", "resnet") as run:
        assert run.is_dir()
    assert list(tmp_path.iterdir()) == []
    with free_directory("shapes", "resnet") as run:
        (run / "run.json").touch()
    assert (tmp_path / "runs/shapes-resnet-1/run.json").exists()


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path):
    (tmp_path / "runs").touch()
    with (
        pytest.raises(OSError, match="runs/shapes-resnet-1 must be writable, got: Not a dir"),
        free_directory("shapes", "resnet"),
    ):
        pass


def test_of_several_processes_rank_zero_makes_the_directory(tmp_path, monkeypatch):
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with free_directory("shapes", "resnet"):
        assert list(tmp_path.iterdir()) == []
