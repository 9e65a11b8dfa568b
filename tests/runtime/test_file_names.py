"""Names of files are bytes: they need not be UTF-8, and the locale decides nothing."""

import shlex
from pathlib import Path

import pytest
import torch

from multipde import NetworkConfig, PDENet, load, load_data, save
from multipde.networks.external import ExternalModel
from multipde.runtime.file_names import in_order, shown_name
from multipde.storage.run_directory import resume_command
from tests.fixtures import write_folder


def test_a_network_is_saved_and_loaded_under_any_name(tmp_path):
    net = PDENet(NetworkConfig("parabolic", (4, 6), 8, size=16)).eval()
    save(net, tmp_path / "r\udce9seau :car:")
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(load(tmp_path / "r\udce9seau :car:")(x), net(x))


def test_classes_and_images_of_a_folder_may_have_any_name(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "d\udce9", 3, 2, 8, classes=("disc", "caf\udce9\x1b[2J", "r[x]"))
    (root / "train/disc/000.png").rename(root / "train/disc/\udce9\n.png")
    for cache in ("cache", "c\udce9"):
        monkeypatch.setenv("MULTIPDE_CACHE", str(tmp_path / cache))
        assert load_data("folder", root=root).class_names == (r"caf\xe9\x1b[2J", "disc", "r[x]")


def test_the_order_of_files_is_that_of_their_bytes():
    latin, utf8 = Path("caf\udcc3\udca9"), Path("café")  # as two locales decode the same name
    assert in_order(latin) == in_order(utf8)
    assert shown_name(latin) == shown_name(utf8) == "café"
    assert sorted([Path("a-b/c"), Path("a/b")], key=in_order) == sorted([Path("a-b/c"), Path("a/b")])


@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_to_go_on_with_can_be_typed(processes, monkeypatch):
    start = []
    if processes > 1:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.setenv(name, "0" if "RANK" in name else "2")
        start = ["torchrun", "--nproc-per-node", "2", "-m", "--"]
    network = ExternalModel("my.nets:make", (("width", 2), ("name", "it's")))
    words = shlex.split(resume_command(Path("my  runs/a;b"), network))
    own = ["multipde", "train", "--run", "my  runs/a;b", "--resume", "--arch", 'my.nets:make(width=2, name="it\'s")']
    assert words == [*start, *own]
