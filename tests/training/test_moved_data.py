"""A run whose images have moved goes on where they are now, if they are the same."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from multipde import Level, NetworkConfig, Schedule, TrainSettings, resume, train
from multipde.cli.main import main
from multipde.data.streamed import StreamedImages
from tests.fixtures import write_folder

NETWORK = NetworkConfig("parabolic", (4,), 4, steps=1, size=8, classes=3)


@pytest.fixture(params=[False, True], ids=["kept", "streamed"])
def stopped(request, tmp_path, monkeypatch):
    """A finished run as if it had been stopped, whose images lie in another folder now."""
    monkeypatch.setattr(StreamedImages.__init__, "__defaults__", (0,))
    monkeypatch.setenv("MULTIPDE_CACHE", str(tmp_path / "cache"))
    root, settings = write_folder(tmp_path / "old/d", 6, 3), TrainSettings(device="cpu", calibration_images=10)
    monkeypatch.chdir(tmp_path / "old")
    options, plan = {"root": "d", "stream_files": request.param}, Schedule([Level(8, 1, batch=6)])
    run = train(NETWORK, plan, "folder", tmp_path / "run", settings=settings, data_options=options, quiet=True)
    (run.directory / "result.json").unlink()
    monkeypatch.chdir(tmp_path)
    root.rename(tmp_path / "new")
    return run.directory


def recorded(run):
    return json.loads((run / "run.json").read_text())["data_options"]["root"]


def test_data_that_have_moved_are_named_by_root(stopped, tmp_path, capsys, monkeypatch, without_report):
    assert recorded(stopped) == str(tmp_path / "old/d")  # whatever the directory from which it was started
    with pytest.raises(ValueError, match="^root must be a directory, got .*old/d; type --root DIR$"):
        resume(stopped, quiet=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    os.utime(stopped / "run.json", (1e9, 1e9))  # when the run began
    main(["train", "--run", str(stopped), "--resume", "--root=~/new"])
    assert os.stat(stopped / "run.json").st_mtime == 1e9
    told = " ".join(capsys.readouterr().out.split())
    assert f"note: the images are read from {tmp_path}/new, no longer from {tmp_path}/old/d" in told
    assert recorded(stopped) == str(tmp_path / "new")
    assert (stopped / "result.json").exists()
    main(["train", "--run", str(stopped), "--resume", "--root", str(tmp_path / "new")])  # the same root passes
    assert "is finished; nothing to do" in " ".join(capsys.readouterr().out.split())


def changed(folder):
    file = next((folder / "train").glob("*/*.png"))
    Image.new("RGB", (16, 16), "red").save(file)


def renamed_class(folder):
    for part in ("train", "test"):
        (folder / part / "disc").rename(folder / part / "zebra")


def without_an_image(folder):
    next((folder / "train").glob("*/*.png")).unlink()


@pytest.mark.parametrize("change", [changed, renamed_class, without_an_image])
def test_other_images_at_the_new_place_are_refused(stopped, tmp_path, change):
    change(tmp_path / "new")
    before = (stopped / "run.json").read_bytes()
    with pytest.raises(ValueError, match="^data must be those of the run|^data must have the 3 classes"):
        resume(stopped, root=tmp_path / "new", quiet=True)
    assert (stopped / "run.json").read_bytes() == before


def test_a_run_that_is_extended_to_a_larger_size_is_compared_at_its_own(stopped, tmp_path):
    resume(stopped, root=tmp_path / "new", quiet=True)
    shutil.move(tmp_path / "new", tmp_path / "again")
    copy = shutil.copytree(stopped, tmp_path / "copy")
    changed(tmp_path / "again")
    with pytest.raises(ValueError, match="^data must be those of the run, with checksum"):
        resume(copy, root=tmp_path / "again", extend=[(12, 1)], quiet=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("shapes", "^root must be left out for a run on shapes, got elsewhere$"),
        (None, "^root must be left out for a run on data without a name, got elsewhere$"),
    ],
)
def test_data_without_a_place_do_not_move(tmp_path, data, message):
    options, settings = {"num_train": 20, "num_test": 10}, TrainSettings(device="cpu", calibration_images=5)
    from multipde import load_data

    source: object = data or load_data("shapes", size=8, **options)
    plan, more = Schedule([Level(8, 1, batch=8)]), options if data else None
    run = train(NETWORK, plan, source, tmp_path / "run", settings=settings, data_options=more, quiet=True).directory
    with pytest.raises(ValueError, match="^root must be left out for .*run, which is finished, got elsewhere$"):
        resume(run, root="elsewhere")
    (run / "result.json").unlink()
    with pytest.raises(ValueError, match=message):
        resume(run, root="elsewhere", quiet=True)
    with pytest.raises(ValueError, match="^root must be left out for a run on data that are given, got elsewhere$"):
        resume(run, source, root=Path("elsewhere"), quiet=True)
