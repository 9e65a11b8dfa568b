"""Fine-tuning as a user types it: files of weights, groups, losses by import path, and what is refused."""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file
from torchvision import models

from multipde.cli.main import main
from tests.fixtures import write_folder

SMALL = "own_losses:small"
OPTIONS = "--sizes 32 --epochs 1 --batch 30 --device cpu"
NET = "def small(num_classes):\n    norm, head = torch.nn.BatchNorm2d(4), torch.nn.Linear(4, num_classes)\n"
NET += "    pooled = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()\n"
NET += "    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), norm, torch.nn.ReLU(), *pooled, head)\n"
LOSS = "def scaled(scores, labels):\n    return 2 * torch.nn.functional.cross_entropy(scores, labels)\n"
LOSS += "class Margin:\n    def __init__(self, margin=1.0):\n        self.margin = margin\n"
LOSS += "    def __call__(self, scores, labels):\n"
LOSS += "        return torch.nn.functional.multi_margin_loss(scores, labels, margin=self.margin)\n"
LOSS += "def pairs(scores, labels):\n    return scores\n"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder of images, and weights of 1,000 classes; no test changes them."""
    place = tmp_path_factory.mktemp("given")
    write_folder(place / "data", num_train=20, num_test=5)
    torch.manual_seed(0)
    torch.save(models.squeezenet1_1().state_dict(), place / "w.pt")
    return place


@pytest.fixture
def here(given, tmp_path, monkeypatch):
    """A working directory with a folder of images, weights of 1,000 classes, and losses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("multipde.reports.page.report_at_end", lambda *args: None)
    for name in ("data", "w.pt"):
        (tmp_path / name).symlink_to(given / name)
    (tmp_path / "own_losses.py").write_text(f"import torch\n{LOSS}{NET}")
    return tmp_path


def typed(words: str, run: str = "run", net: str = "squeezenet1_1") -> list[str]:
    data = ["--data", "folder", "--root", "data", "--arch", net]
    return ["train", *data, *OPTIONS.split(), *words.split(), "--run", run]


def test_a_head_is_trained_and_the_record_holds_how(here, capsys):
    namespace: dict = {"torch": torch}
    exec(NET, namespace)
    torch.save({f"module.{name}": t for name, t in namespace["small"](1000).state_dict().items()}, "small.pt")
    words = "--weights small.pt --freeze body --rate head=0.05 --accumulate 2 --clip-norm 1 --class-weights 1 2 0.5"
    main(typed(f"{words} --balance --normalize imagenet", net=SMALL))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "weights: 7 of 9 tensors of small from small.pt, without the prefix module., "
        "new head 5 for 3 classes instead of 1000"
    )
    assert lines[1] == "120 of 135 weights of small are frozen, and the statistics of 1 BatchNorm layers"
    assert not any("BatchNorm normalises each" in line for line in lines)  # it is frozen
    before, after = torch.load("small.pt", weights_only=True), load_file("run/model.safetensors")
    same = {name for name, t in after.items() if torch.equal(before[f"module.{name}"], t)}
    assert set(after) - same == {"5.weight", "5.bias"}
    record = json.loads((here / "run/run.json").read_text())
    assert record["weights"]["file"] == str(here / "small.pt")
    assert record["network"]["mean"] == [0.485, 0.456, 0.406]
    settings = record["settings"]
    assert (settings["freeze"], settings["rate"], settings["class_weights"]) == (["body"], ["head=0.05"], [1, 2, 0.5])
    agreeing = "--weights small.pt --freeze body --rate head=0.05 --class-weights 1 2 0.5 --balance"
    main(["train", "--run", "run", "--resume", "--arch", SMALL, *agreeing.split()])
    assert "is finished; nothing to do" in capsys.readouterr().out
    for words, line in (
        ("--freeze head", "freeze must be that of the run, body, got --freeze head; leave it out"),
        ("--rate head=1", "rate must be that of the run, head=0.05, got --rate head=1; leave it out"),
        (
            "--weights other.pt",
            f"weights must be that of the run, {here}/small.pt, got --weights other.pt; leave it out",
        ),
        ("--accumulate 3", "accumulate must be that of the run, 2, got --accumulate 3; leave it out"),
    ):
        assert (
            error(capsys, ["train", "--run", "run", "--resume", "--arch", SMALL, *words.split()])
            == f"multipde: {line}\n"
        )


def error(capsys, arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_loss_by_its_import_path_is_named_again_to_resume(here, capsys, signal_at_step):
    main(typed("--loss own_losses:scaled", "whole", SMALL))
    signal_at_step(1, signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        main(typed("--loss own_losses:scaled", net=SMALL))
    assert stop.value.code == 128 + signal.SIGTERM
    assert (
        "go on with: multipde train --run run --resume --arch own_losses:small --loss own_losses:scaled\n"
        in capsys.readouterr().err
    )
    signal_at_step(None)
    line = "loss must be that of the run, own_losses:scaled, got none; type --loss own_losses:scaled"
    assert line in error(capsys, ["train", "--run", "run", "--resume", "--arch", SMALL])
    main(["train", "--run", "run", "--resume", "--arch", SMALL, "--loss", "own_losses:scaled"])
    assert (here / "run/model.safetensors").read_bytes() == (here / "whole/model.safetensors").read_bytes()


def test_a_class_with_arguments_makes_a_loss(here, capsys):
    main(typed("--loss own_losses:Margin(margin=0.5)", net=SMALL))
    assert json.loads((here / "run/run.json").read_text())["objective"]["loss"] == "own_losses:Margin(margin=0.5)"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--loss own_losses", "loss must be package.module:function, got 'own_losses'"),
        ("--loss own_losses:none", "loss must name a function that can be imported, got 'own_losses:none' ("),
        ("--loss own_losses:Margin(size=2)", "loss must have arguments that it accepts, got own_losses:Margin(size=2)"),
        ("--loss own_losses:pairs", "loss must give one number, the mean over the images, got shape (30, 3)"),
        ("--loss own_losses:scaled --class-weights balanced", "class_weights must be left out with a loss of your own"),
        ("--weights none.pt", "weights must be a file, got none.pt"),
        ("--weights own_losses.py", "weights must be a state dict in .safetensors or .pt, got own_losses.py"),
        ("--weights w.pt --init run0", "checkpoint must be a directory, got run0"),
        ("--weights w.pt --freeze featurs", "type head, body, or a name or pattern such as features"),
        ("--rate haed=1", "rate must match parameters of squeezenet1_1, got 'haed'; type head, body, or a name or"),
        ("--rate head:1", "rate must be GROUP=RATE with a positive rate such as head=0.01, got 'head:1'"),
        ("--thaw 2", "thaw must come with freeze, got 2"),
        ("--from-size 16", "from_size must come with weights, got 16"),
        ("--class-weights 1 2", "class_weights must have an entry for each of the 3 classes, got 2"),
        ("--normalize imagenet --standardize", "normalize must be left out with standardize, got"),
    ],
)
def test_wrong_input_is_told_in_one_line_and_leaves_nothing(words, line, here, capsys):
    said = error(capsys, typed(words))
    assert line in said
    assert said.startswith("multipde: ")
    assert said.count("\n") == 1
    if "pairs" not in words:  # only the first step can tell
        assert not (here / "run").exists()
