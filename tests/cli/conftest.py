"""What the tests of the commands share."""

import shutil

import pytest

from multipde import NetworkConfig, PDENet, save
from multipde.cli.main import main
from tests.fixtures import narrow, write_folder


@pytest.fixture(scope="module")
def place(trained, narrow_presets):
    """A folder data set, a run trained on it by the command, a plain checkpoint; no test changes them."""
    return trained


@pytest.fixture
def without_figure(monkeypatch):
    """A conversion draws no figure beside its report."""
    monkeypatch.setattr("multipde.reports.plots.conversion_figure", lambda report: b"")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    write_folder(root / "data")
    arguments = "--dynamics hamiltonian --sizes 8 16 --epochs 1 1 --batch 30 --quiet --device cpu"
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch)
        patch.setattr("multipde.reports.page.report_at_end", lambda *args: None)
        main(
            ["train", "--data", "folder", "--root", str(root / "data"), "--run", str(root / "run"), *arguments.split()]
        )
    save(PDENet(NetworkConfig("parabolic", (4, 6), 8, size=16)), root / "net")
    damaged = bytearray((shutil.copytree(root / "net", root / "damaged") / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (root / "damaged/model.safetensors").write_bytes(damaged)
    return root
