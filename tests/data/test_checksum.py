"""What the images were: by their contents, without running a program of whoever made the folder."""

import json
import os
import shutil
import stat
import subprocess

import pytest

from multipde import Level, NetworkConfig, Schedule, TrainSettings, load_data, resume, train
from multipde.data import checksum
from multipde.data.checksum import FileChecksum, data_checksum
from multipde.data.streamed import StreamedImages

NETWORK = NetworkConfig("parabolic", (4,), 4, steps=1, size=8, classes=3)


@pytest.fixture(autouse=True)
def _decoded_in_this_process(monkeypatch):
    monkeypatch.setattr(StreamedImages.__init__, "__defaults__", (0,))


@pytest.fixture
def plan():
    return Schedule([Level(8, 2, batch=20)]), TrainSettings(device="cpu", calibration_images=20)


def hostile(folder, mark):
    """A repository whose configuration names a program for everything that git may be asked."""
    program = folder / "program"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    names = ("core.fsmonitor", "core.sshCommand", "core.pager", "core.editor", "diff.external", "gpg.program")
    for name in names:
        subprocess.run(["git", "-C", str(folder), "config", name, str(program)], check=True)
    return folder


def bare(folder, mark):
    """The same as a bare repository: what a folder of images that is a repository itself would hold."""
    hostile(folder, mark)
    for path in (folder / ".git").iterdir():
        shutil.move(path, folder / path.name)
    (folder / ".git").rmdir()
    config = (folder / "config").read_text().replace("bare = false", "bare = true")
    (folder / "config").write_text(config)
    return folder


@pytest.mark.parametrize("make", [hostile, bare])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_data_folder_runs_nothing(make, streamed, plan, folder, tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    make(folder, mark)
    called = tmp_path / "called"
    (tmp_path / "bin").mkdir()
    for name in ("git", "file", "identify"):  # whoever calls one of these in there is noticed, whatever it asks
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ntouch {called}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def forbidden(*args, **options):
        raise AssertionError(f"a program was started: {args}")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    monkeypatch.setattr(os, "system", forbidden)
    options = {"root": folder, "stream_files": streamed}
    levels, settings = plan
    run = train(NETWORK, levels, "folder", tmp_path / "run", settings=settings, data_options=options, quiet=True)
    resume(run.directory, quiet=True)
    assert not mark.exists()
    assert not called.exists()


@pytest.fixture
def streamed_run(plan, folder, tmp_path, monkeypatch):
    levels, settings = plan
    options = {"root": folder, "stream_files": True}
    return train(NETWORK, levels, "folder", tmp_path / "run", settings=settings, data_options=options, quiet=True)


def test_streamed_files_are_known_by_their_contents(folder, tmp_path):
    before = load_data("folder", root=folder, stream_files=True)
    path = before.train.paths[3]  # pyright: ignore[reportAttributeAccessIssue]
    expected, listed = FileChecksum(before).result(wait=True), data_checksum(before)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # same name, same length, same pixels
    path.write_bytes(data)
    after = load_data("folder", root=folder, stream_files=True)
    assert data_checksum(after) == listed
    assert FileChecksum(after).result(wait=True) != expected
    data[-1] ^= 1
    path.write_bytes(data)
    assert FileChecksum(after).result(wait=True) == expected
    assert FileChecksum(load_data("folder", root=folder)).result(wait=True) is None


def test_long_files_are_read_beside_the_training(folder):
    images = load_data("folder", root=folder, stream_files=True)
    assert FileChecksum(images, quick_bytes=0).result(wait=True) == FileChecksum(images).result()
    given_up = FileChecksum(images, quick_bytes=0)
    given_up.close()
    given_up._thread.join()
    assert given_up.result(wait=True) in (None, FileChecksum(images).result())


def test_a_run_records_the_contents_and_refuses_others(streamed_run, folder):
    file = streamed_run.directory / "run.json"
    recorded = json.loads(file.read_text())["provenance"]["data"]["files_sha256"]
    assert recorded == FileChecksum(load_data("folder", root=folder, stream_files=True)).result()
    (streamed_run.directory / "result.json").unlink()  # as if it had been stopped
    resume(streamed_run.directory, quiet=True)
    (streamed_run.directory / "result.json").unlink()
    path = next((folder / "train").glob("*/000.png"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # behind the pixels: only the bytes of the file tell
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"data must be those of the run, with checksum \w+\.\.\., got \w+\.\.\.: "):
        resume(streamed_run.directory, quiet=True)


def test_contents_that_changed_between_epochs_end_the_run_where_they_are_read_late(plan, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(checksum.FileChecksum.__init__, "__defaults__", (0,))
    levels, settings = plan
    options = {"root": folder, "stream_files": True}
    run = train(NETWORK, levels, "folder", tmp_path / "run", settings=settings, data_options=options, quiet=True)
    file = run.directory / "run.json"
    record = json.loads(file.read_text())
    assert len(record["provenance"]["data"]["files_sha256"]) == 64
    record["provenance"]["data"]["files_sha256"] = "0" * 64
    file.write_text(json.dumps(record))
    (run.directory / "result.json").unlink()
    with pytest.raises(ValueError, match=r"with checksum 0{12}\.\.\., got \w{12}\.\.\.: images or labels have changed"):
        resume(run.directory, quiet=True)
    assert not (run.directory / "result.json").exists()


def test_a_file_that_is_none_is_told(folder):
    images = load_data("folder", root=folder, stream_files=True)
    images.train.paths[0].unlink()  # pyright: ignore[reportAttributeAccessIssue]
    os.mkfifo(images.train.paths[0])  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=r"image must be readable, got .*000.png \(no regular file\)"):
        FileChecksum(images).result(wait=True)
