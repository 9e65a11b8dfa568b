"""What a converted network must see again."""

import json

import pytest
import torch

from multipde import NetworkConfig, PDENet, load_data, save
from multipde.studies.bench.finetune import finetune_study

OPTIONS = {"num_train": 150, "num_test": 60}


def test_rows_for_recalibration_fine_tuning_and_the_rival(tmp_path, figures):
    torch.manual_seed(0)
    names = load_data("shapes", size=8, **OPTIONS).class_names
    save(PDENet(NetworkConfig("hamiltonian", (4, 6), 8, steps=2, size=16, class_names=names)), tmp_path / "net")
    arguments = {
        "size": 8, "methods": ("copy", "calibrated"), "epochs": (1.0,), "scratch": (1.0,), "device": "cpu",
    }  # fmt: skip
    out = tmp_path / "rows.jsonl"
    finetune_study(tmp_path / "net", ("shapes", OPTIONS), out, recalibration=(32,), **arguments)
    rows = finetune_study(tmp_path / "net", ("shapes", OPTIONS), out, recalibration=(32, 1000), **arguments)
    assert [(r["name"], r["method"], r["images"]) for r in rows] == [
        ("recalibrated", "copy", 32),
        ("recalibrated", "calibrated", 32),
        ("fine-tuned", "copy", 120),
        ("fine-tuned", "calibrated", 120),
        ("from scratch", "-", 120),
        ("recalibrated", "copy", 120),
        ("recalibrated", "calibrated", 120),
    ]
    assert rows == [json.loads(line) for line in out.read_text().splitlines()]
    assert all(60 * r["accuracy"] == pytest.approx(round(60 * r["accuracy"])) for r in rows)  # of 60 images
    points = {(x, y) for line in figures[-1].axes[0].lines for x, y in zip(*line.get_data(), strict=True)}
    assert points == {(r["images"], 100 * r["accuracy"]) for r in rows}
