"""Networks in the layout of the Hub: written, read again, pushed to a Hub that is pretended, and read by its mixin."""

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from multipde import NetworkConfig, PDENet, convert, describe, from_pretrained, load, push_to_hub, save, save_pretrained
from multipde.cli.main import main
from tests.fixtures import as_format_1
from tests.storage.test_links import run as trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "one|run")


@pytest.fixture
def net():
    return PDENet(NetworkConfig("parabolic", (4, 6), 3, size=16, classes=2, class_names=("disc", "ring"))).eval()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub in a directory: what is pushed is copied there, and found again by its name."""
    root, calls = tmp_path / "hub", []

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, private, exist_ok):
            assert exist_ok
            calls.append({"private": private, "token": self.token})
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id if '/' in repo_id else f'me/{repo_id}'}")

        def upload_folder(self, repo_id, repo_type, folder_path, **how):
            calls[-1] |= how
            shutil.copytree(folder_path, root / repo_id)
            return f"https://huggingface.co/{repo_id}/commit/1"

    def download(repo_id, allow_patterns, **how):
        calls.append(how)
        if not (root / repo_id).is_dir():
            raise huggingface_hub.errors.RepositoryNotFoundError("no such repository", response=MagicResponse())
        return str(root / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


class MagicResponse:
    headers: dict = {}  # noqa: RUF012
    request = None


def test_the_directory_of_a_run_has_a_card_with_its_numbers(run, tmp_path):
    assert save_pretrained(run, tmp_path / "shared") is None
    found = {path.name for path in (tmp_path / "shared").iterdir()}
    assert found == {"config.json", "model.safetensors", "SHA256SUMS", "README.md", "accuracy.png", "loss.png"}
    card = huggingface_hub.ModelCard.load(tmp_path / "shared/README.md")
    result = json.loads((run / "result.json").read_text())
    assert card.data.library_name == "multipde"
    assert card.data.eval_results[0].metric_value == pytest.approx(result["test_accuracy"], abs=1e-6)
    assert card.data.eval_results[0].metric_type == "accuracy"
    text = card.content
    assert f"{100 * result['test_accuracy']:.2f}" in text
    assert "![accuracy over the epochs of all levels](accuracy.png)" in text
    assert "| size (pixels) | epochs | validation accuracy | validation loss | MFLOPs/image |" in text
    assert 'multipde.load("DIRECTORY")' in text
    assert (tmp_path / "shared/accuracy.png").read_bytes().startswith(b"\x89PNG")
    old, new = load(run).state_dict(), from_pretrained(tmp_path / "shared").state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_an_existing_directory_is_written_over_and_its_card_kept(net, tmp_path):
    save_pretrained(net, tmp_path / "net")
    (tmp_path / "net/README.md").write_text("mine\n")
    (tmp_path / "net/other.txt").write_text("kept\n")
    larger = convert(net, size=32)
    save_pretrained(larger, tmp_path / "net")
    assert (tmp_path / "net/README.md").read_text() == "mine\n"
    assert (tmp_path / "net/other.txt").exists()
    assert load(tmp_path / "net").config.size == 32


def test_a_run_or_a_network_with_a_report_is_not_written_over(run, net, tmp_path):
    own = shutil.copytree(run, tmp_path / "run")
    converted = tmp_path / "converted"
    main(["convert", str(run), "--size", "8", "--method", "copy", "--finish", "none", "--out", str(converted)])
    for place, name in ((own, "run.json"), (converted, "report.json")):
        before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        with pytest.raises(
            ValueError, match=f"save_directory must be a directory of its own, got .*, which holds {name}"
        ):
            save_pretrained(net, place)
        assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_a_card_shows_no_place_and_the_network_that_was_trained(run, tmp_path):
    place = shutil.copytree(run, tmp_path / "caf\udce9")
    record = json.loads((as_format_1(place) / "run.json").read_text())
    record["provenance"]["command"] = "/home/me/.venv/bin/multipde train --root /home/me/photos --init=/home/me/net"
    record["data"] = "webdataset"
    (place / "run.json").write_text(json.dumps(record))
    save_pretrained(place, tmp_path / "shared")
    card = (tmp_path / "shared/README.md").read_text()
    assert "multipde train --root photos --init=net\n" in card
    assert "/home/me" not in card
    assert "datasets:" not in card
    assert f"| size | {load(run).multipde_spec.size} |" in card


def test_networks_go_to_the_hub_and_come_back(net, hub, tmp_path, capsys):
    assert push_to_hub(net, "disc-net", private=True, token="t", branch="b") == (
        "https://huggingface.co/me/disc-net/commit/1"
    )
    given = {"private": True, "token": "t", "revision": "b", "create_pr": None}
    assert hub[0] == given | {"commit_message": "Push model using multipde."}
    x = torch.randn(2, 3, 16, 16)
    for found in (
        load("hf://me/disc-net"),
        load(Path("hf://me/disc-net@v1")),  # pathlib writes one slash
        from_pretrained("me/disc-net", revision="v1"),
        from_pretrained("hf://me/disc-net@v1"),
    ):
        assert torch.equal(found(x), net(x))
    assert [call.get("revision") for call in hub[1:]] == [None, "v1", "v1", "v1"]
    text = (tmp_path / "hub/me/disc-net/README.md").read_text()
    assert 'net = multipde.load("hf://me/disc-net")' in text
    assert "Classes: disc, ring." in text
    main(["inspect", "hf://me/disc-net"])
    assert "parabolic" in capsys.readouterr().out
    assert save_pretrained(net, tmp_path / "local", repo_id="me/again", push_to_hub=True).endswith("me/again/commit/1")


def test_a_plain_path_with_a_typo_never_asks_the_hub(hub):
    for name in ("me/disc-net", "runs/disc-net", "./me/disc-net"):
        with pytest.raises(ValueError, match=f"checkpoint must be a directory, got {name.removeprefix('./')}"):
            load(name if not name.startswith(".") else os.path.normpath(name))
    assert hub == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hf://disc-net", "checkpoint on the Hub must be hf://user/name or hf://user/name@revision, got hf://disc-net"),
        ("hf://a/b/c", "checkpoint on the Hub must be hf://user/name"),
        ("hf://../b", "checkpoint on the Hub must be hf://user/name"),
        ("hf://nobody/none", "network must be on the Hub, got for nobody/none: "),
    ],
)
def test_wrong_names_get_one_line(hub, name, text):
    with pytest.raises(ValueError, match="^" + text) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_what_else_is_wrong_gets_one_line(net, hub, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="network must be a directory, or user/name on the Hub, got 'a/b/c'"):
        from_pretrained("a/b/c")
    with pytest.raises(ValueError, match="push_to_hub must be True with private, got False"):
        save_pretrained(net, tmp_path / "n", private=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="save_directory must be a directory, got the file"):
        save_pretrained(net, tmp_path / "file")
    with pytest.raises(ValueError, match="model must carry its description"):
        save_pretrained(nn.Linear(2, 2), tmp_path / "n")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"huggingface_hub must be installed .*; type pip install 'multipde\[hub\]'"):
        load("hf://me/disc-net")
    assert not (tmp_path / "n").exists()


class Mixed(nn.Module, huggingface_hub.PyTorchModelHubMixin):
    """The network of a record, with the methods of the Hub's own mixin."""

    def __init__(self, format, network):
        super().__init__()
        self.net = PDENet(NetworkConfig(**network))

    def forward(self, x):
        return self.net(x)

    def state_dict(self, *args, **how):
        return self.net.state_dict(*args, **how)

    def load_state_dict(self, state, strict=True, assign=False):
        return self.net.load_state_dict(state, strict)


def test_the_mixin_of_the_hub_writes_and_reads_the_same_files(net, tmp_path):
    save_pretrained(net, tmp_path / "ours")
    theirs = Mixed(**json.loads((tmp_path / "ours/config.json").read_text()))
    theirs.net.load_state_dict(net.state_dict())
    theirs.save_pretrained(tmp_path / "theirs", config=json.loads((tmp_path / "ours/config.json").read_text()))
    names = {path.name for path in (tmp_path / "theirs").iterdir()}
    assert names == {path.name for path in (tmp_path / "ours").iterdir()} - {"SHA256SUMS"}
    ours, found = (load_file(tmp_path / f"{who}/model.safetensors") for who in ("ours", "theirs"))
    assert {name: t.tolist() for name, t in ours.items()} == {
        name.removeprefix("net."): t.tolist() for name, t in found.items()
    }
    kinds = [json.loads((tmp_path / f"{who}/config.json").read_text()) for who in ("ours", "theirs")]
    assert kinds[0] == kinds[1]


def test_an_external_network_keeps_its_description(tmp_path):
    net = describe(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.LazyLinear(2)), size=8, classes=2)
    net(torch.zeros(1, 3, 8, 8))
    save_pretrained(net, tmp_path / "net")
    assert "model=...)" in (tmp_path / "net/README.md").read_text()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(from_pretrained(tmp_path / "net", model=net)(x), net(x))
    with pytest.raises(FileExistsError):
        save(net, tmp_path / "net")
