"""Top-5, precision, recall and calibration against their definitions."""

import json
import math

import pytest
import torch
from torch import nn

from multipde import NetworkConfig, PDENet, save
from multipde.cli.main import main
from multipde.evaluation.metrics import evaluate_batches
from multipde.evaluation.reliability import calibration_error, reliability_bins, right_among
from multipde.runtime.device import Compute


def measured(scores, labels, batch=7):
    class Fixed(nn.Module):
        def forward(self, x):
            return scores[x]

    batches = [(i, labels[i]) for i in torch.arange(len(labels)).split(batch)]
    return evaluate_batches(Fixed(), batches, Compute.of("cpu"))


def test_every_figure_is_what_its_definition_says():
    torch.manual_seed(0)
    scores, labels = 3 * torch.randn(60, 8), torch.randint(8, (60,))
    found, p = measured(scores, labels), scores.softmax(1)
    answers, confidence = p.argmax(1), p.max(1).values
    top = [label in row for row, label in zip(scores.topk(5).indices.tolist(), labels.tolist(), strict=True)]
    assert found.top5 == pytest.approx(sum(top) / 60)
    for k in range(8):
        chosen, own = answers == k, labels == k
        assert found.precision[k].item() == pytest.approx(((chosen & own).sum() / chosen.sum()).item(), nan_ok=True)
        assert found.recall[k].item() == pytest.approx(((chosen & own).sum() / own.sum()).item(), nan_ok=True)
    error = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            right = (answers == labels)[inside].double().mean()
            error += inside.sum() / 60 * (right - confidence[inside].double().mean()).abs()
    assert found.calibration_error == pytest.approx(float(error), abs=1e-6)


def test_a_classifier_that_says_what_it_knows_has_no_calibration_error():
    scores = torch.tensor([0.75, 0.25]).log().expand(400, 2)
    labels = torch.cat([torch.zeros(300), torch.ones(100)]).long()
    assert calibration_error(reliability_bins(scores, labels)) == pytest.approx(0, abs=1e-6)
    assert calibration_error(reliability_bins(scores, 1 - labels)) == pytest.approx(0.5, abs=1e-6)
    assert int(reliability_bins(torch.zeros(3, 1), torch.zeros(3).long())[14, 0]) == 3


def test_of_equal_scores_the_class_counts_as_the_last():
    assert int(right_among(torch.zeros(4, 10), torch.arange(4), 5)) == 0
    assert int(right_among(torch.eye(4), torch.arange(4), 1)) == 4


@pytest.mark.usefixtures("few_shapes")
def test_evaluate_prints_all_of_them_as_json(tmp_path, capsys):
    torch.manual_seed(0)
    save(PDENet(NetworkConfig("parabolic", (4,), 6, steps=1, size=8)), tmp_path / "net")
    main(["evaluate", str(tmp_path / "net"), "--data", "shapes", "--num-images", "60", "--json", "--views", "2"])
    found = json.loads(capsys.readouterr().out)
    assert [row.get("views") for row in found["rows"]] == [None, 2]
    for row in found["rows"]:
        test = row["test"]
        assert test["accuracy"] == row["accuracy"]
        assert test["accuracy"] <= test["top5"] <= 1
        assert sum(map(sum, test["confusion"])) == test["images"] == 60
        assert len(test["classes"]) == 10
        assert sum(each["images"] for each in test["reliability"]) == 60
        assert 0 <= test["calibration_error"] <= 1
        assert all(v is None or 0 <= v <= 1 for c in test["classes"].values() for v in (c["precision"], c["recall"]))
    assert not math.isnan(found["rows"][0]["loss"])
