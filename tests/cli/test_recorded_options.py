"""Options that stand beside those of a run's record."""

import json
from pathlib import Path

import pytest

from multipde import Level, NetworkConfig, TrainSettings
from multipde.cli.main import main
from multipde.cli.options import DataOptions
from multipde.studies.trained import trained
from tests.fixtures import write_folder

NETWORK = NetworkConfig("parabolic", (4,), 4, steps=1, size=8, classes=3)


@pytest.fixture
def run(tmp_path: Path):
    """A run on a share of a folder, in a directory that an earlier start has left empty."""
    root = write_folder(tmp_path / "data", 6, 3) / "train"
    (tmp_path / "run").mkdir()
    settings = TrainSettings(device="cpu", calibration_images=10)
    options = {"root": str(root), "stream_files": True, "test_share": 0.25}
    level = Level(8, 1, batch=6)
    return trained(tmp_path / "run", NETWORK, [level], "folder", settings, options).directory


def test_options_of_a_run_are_replaced_by_false_as_by_others(run):
    recorded = json.loads((run / "run.json").read_text())["data_options"]
    assert DataOptions().of(run) == ("folder", recorded)
    assert DataOptions(stream=False).of(run) == ("folder", recorded | {"stream_files": False})
    assert DataOptions(test_share=0.5).of(run) == ("folder", recorded | {"test_share": 0.5})


@pytest.mark.usefixtures("without_report")
def test_a_share_that_is_that_of_the_run_passes(run, capsys):
    main(["train", "--run", str(run), "--resume", "--test-share", "0.250"])
    assert "is finished; nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--run", str(run), "--resume", "--test-share", "0.5"])
    assert "test_share must be that of the run, 0.25, got --test-share 0.5" in capsys.readouterr().err
