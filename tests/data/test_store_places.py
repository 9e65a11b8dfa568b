"""Directories of stores: a job has its own, and those that nobody holds are removed."""

import os
import subprocess
import sys
import time

import pytest

from multipde.data import store_places
from multipde.data.store_places import new_place

HOLD = """
import sys
from multipde.data.store_places import new_place
print(new_place(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTIPDE_CACHE", str(tmp_path))
    yield tmp_path / "streams"
    release()


def release():
    while store_places._LOCKS:
        os.close(store_places._LOCKS.pop())


def grow_old(path):
    os.utime(path, (time.time() - 2 * store_places.NEW,) * 2)


def test_what_nobody_holds_is_removed(cache):
    first = new_place()
    grow_old(first)
    second = new_place()
    assert first.is_dir()  # this process holds it
    release()
    new_place()
    assert second.is_dir()  # it may be about to be held
    assert not first.exists()


def test_what_another_process_holds_stays(cache):
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    place = cache / os.path.basename(holder.stdout.readline().strip())
    grow_old(place)
    new_place()
    assert place.is_dir()
    holder.kill()
    holder.communicate()
    grow_old(place)
    new_place()
    assert not place.exists()


def test_processes_of_one_job_share_a_place_and_other_jobs_do_not(cache, monkeypatch):
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    names = [store_places._job()]
    assert store_places._job() == names[0]
    for name, value in (("TORCHELASTIC_RUN_ID", "another"), ("MASTER_PORT", "29501")):
        monkeypatch.setenv(name, value)
        names.append(store_places._job())
    assert len(set(names)) == 3
    place = new_place()
    monkeypatch.setattr(store_places, "_NUMBERS", iter([int(place.name.rpartition("-")[2])]))
    assert new_place() == place


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MULTIPDE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="a directory for the stream must be writable, got .*; set MULTIPDE_CACHE"):
        new_place()
