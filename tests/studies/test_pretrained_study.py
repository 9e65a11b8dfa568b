"""Pretrained weights that are fine-tuned on small images first: all arms start alike and do the same work."""

import json

import pytest
import torch

from multipde import num_weights
from multipde.networks.cost import count_flops
from multipde.networks.external import ExternalModel
from multipde.runtime.console import Log
from multipde.storage.tensors import MODEL
from multipde.studies.bench import pretrained_study as study
from multipde.studies.bench.plain_networks import half_resnet18_model, small_resnet18_model
from multipde.training import run as training

OPTIONS = ("shapes", {"num_train": 200, "num_test": 40})


def narrow(num_classes):
    layers = [torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU()]
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, num_classes)]
    return torch.nn.Sequential(*layers)


def test_half_of_a_resnet18_has_a_quarter_of_its_work():
    half, whole = (model(16, 10) for model in (half_resnet18_model, small_resnet18_model))
    assert num_weights(half.build()) == 2_797_610
    assert count_flops(half) == pytest.approx(count_flops(whole) / 4, rel=0.01)
    assert half.build()(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_all_arms_do_the_same_work_and_a_row_is_not_measured_again(tmp_path, monkeypatch, figures):
    started, original = [], training.WeightsFile.start

    def start(self, *given):
        started.append((self.file, self.from_size))
        return original(self, *given)

    monkeypatch.setattr(training.WeightsFile, "start", start)
    monkeypatch.setattr(
        study, "half_resnet18_model", lambda size, n: ExternalModel("python:x", classes=n, size=size, factory=narrow)
    )
    how = {"pretrain": OPTIONS, "size": 16, "pretrain_size": 8, "pretrain_budget": "0.02GFLOPs", "device": "cpu"}
    how |= {"budgets": ("0.15GFLOPs",), "seeds": (0,), "batch": 30, "test_images": 25, "run_dir": tmp_path / "runs"}
    arms = ("full size", "coarse to fine, from scratch")
    study.pretrained_study(OPTIONS, tmp_path / "rows.jsonl", arms=arms, **how)
    pretrained = tmp_path / "runs/shapes-8-0.02GFLOPs"
    assert started == [(pretrained / MODEL, 8)]
    weights = (pretrained / MODEL).read_bytes()
    rows = study.pretrained_study(OPTIONS, tmp_path / "rows.jsonl", arms=("coarse to fine", *arms), **how)
    assert len(started) == 2
    assert (pretrained / MODEL).read_bytes() == weights
    assert rows == [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["arm"] for row in rows] == [*arms, "coarse to fine"]
    assert [[size for size, _ in row["levels"]] for row in rows] == [[16], [8, 16], [8, 16]]
    work = [row["flops"] for row in rows]
    assert max(work) < 1.25 * min(work)
    assert all(25 * row["test_accuracy"] == pytest.approx(round(25 * row["test_accuracy"])) for row in rows)
    assert len({row["pretrained_accuracy"] for row in rows}) == 1
    (axis,) = figures[-1].axes
    assert axis.get_title() == "shapes, 16 pixels, 0.15GFLOPs"
    table = study._tables(rows)["shapes to shapes at 16 pixels"]
    assert [line["arm"] for line in table] == ["full size", "coarse to fine", "coarse to fine, from scratch"]
    gain = 100 * (rows[2]["test_accuracy"] - rows[0]["test_accuracy"])
    assert table[1]["gain over full size"] == f"{gain:+.2f}"
    assert table[2]["gain over full size"] == "-"  # its rival has not been trained


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"arms": ("best",)}, "arms must be among full size, coarse to fine, .*, got 'best'"),
        ({"budgets": ("3min",)}, "budget must be in FLOPs such as 3TFLOPs, got 3min"),
    ],
)
def test_wrong_arguments_are_one_line(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        study.pretrained_study(OPTIONS, tmp_path / "rows.jsonl", pretrain=OPTIONS, **wrong)
    assert not list(tmp_path.iterdir())


def test_missing_data_are_told_before_anything_else(tmp_path, capsys):
    wanted = {"run_dir": tmp_path / "runs", "log": Log(needed=True)}
    for name, sources in (("pretrain", (OPTIONS, ("folder", {"root": tmp_path / "pretrain"}))),
                          ("data", (("folder", {"root": tmp_path / "data"}), OPTIONS))):  # fmt: skip
        with pytest.raises(ValueError, match=f"root must be a directory, got {tmp_path / name}"):
            study.pretrained_study(sources[0], tmp_path / "rows.jsonl", pretrain=sources[1], **wanted)
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())
