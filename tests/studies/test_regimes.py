"""The study of smooth and rough images."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportArgumentType=false

import functools
import json

import pytest
import torch

from multipde import load_data
from multipde.evaluation.measured_conversion import AUTO_METHODS
from multipde.studies.bench import regimes
from multipde.studies.bench.consistency import consistency
from multipde.studies.bench.regimes import WAVES, blurred, regimes_study, table

OPTIONS = {"num_train": 60, "num_test": 30}

pytestmark = pytest.mark.usefixtures("narrow_presets")


def test_blurring_keeps_constants_and_is_the_gaussian_of_that_width():
    data = load_data("shapes", size=32, **OPTIONS)
    point = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    point[:, :, 16, 16] = 255
    data.train.images[:1] = point
    data.train.images[1] = 77
    x = blurred(data, 2.0).train.images
    torch.testing.assert_close(x[1], torch.full_like(x[1], 77))
    assert x[0, 0, 16, 16].item() == pytest.approx(255 / (2 * torch.pi * 4), rel=0.02)
    assert (x[0, 0, 16, 18] / x[0, 0, 16, 16]).item() == pytest.approx(2.718281828**-0.5, rel=1e-4)
    assert blurred(data, 0.0) is data


def test_rows_have_all_methods_and_are_not_measured_twice(tmp_path, figures, monkeypatch):
    monkeypatch.setattr(regimes, "WAVES", WAVES[:2])
    monkeypatch.setattr(regimes, "consistency", functools.partial(consistency, num_seeds=1))
    cases = ((0.0, "relu"), (4.0, "tanh"))
    out = tmp_path / "rows.jsonl"
    arguments = {"size": 16, "epochs": 1, "num_images": 30, "device": "cpu"}
    rows = regimes_study(("shapes", OPTIONS), out, cases=cases[:1], **arguments)
    everything = regimes_study(("shapes", OPTIONS), out, cases=cases, **arguments)
    assert everything == [json.loads(line) for line in out.read_text().splitlines()]
    rows = [r for r in everything if "accuracy" in r]
    assert len([r for r in everything if "error" in r]) == 2
    assert [(r["blur"], r["net"]) for r in rows] == [(0.0, "relu"), (4.0, "tanh")]
    assert all(set(r["accuracy"]) == set(AUTO_METHODS) for r in rows)
    assert rows[1]["opening"] > rows[0]["opening"]  # blurred images are smoother
    assert table(rows)[0]["copy"] == f"{100 * rows[0]['accuracy']['copy']:.1f}"
    waves, trained = figures[-1].axes
    assert sum(len(line.get_xdata()) for line in waves.lines[1:]) == 2 * (len(AUTO_METHODS) - 1)
    drawn = [line for line in trained.lines[1:] if len(line.get_xdata())]
    for line, method in zip(drawn, [m for m in AUTO_METHODS if m != "copy"], strict=True):
        gains = [100 * (r["accuracy"][method] - r["accuracy"]["copy"]) for r in rows]
        assert list(line.get_ydata()) == gains


def test_streamed_images_cannot_be_blurred(folder):
    data = load_data("folder", root=folder, size=8, stream_files=True)
    with pytest.raises(ValueError, match="data must be kept in memory to be blurred"):
        blurred(data, 1.0)


def test_on_one_smooth_layer_rediscretisation_wins_and_on_a_rough_one_copying():
    smooth, rough = (consistency(frequency, depth=1, num_seeds=2) for frequency in (1, 12))
    assert smooth["exponent"] > 0.95
    assert smooth["error"]["rediscretize"] < smooth["error"]["copy"] / 3
    assert smooth["error"]["calibrated"] < smooth["error"]["copy"] / 3
    assert rough["error"]["copy"] < rough["error"]["rediscretize"]
    assert rough["error"]["calibrated"] < 1.2 * rough["error"]["copy"]
