"""``bench inference`` times what is used, and its floor is the convolutions of the network."""

import json

import pytest
import torch

from multipde import NetworkConfig, PDENet
from multipde.runtime.device import Compute
from multipde.studies.bench import inference
from multipde.studies.bench.step_speed import ConvolutionRecorder


def test_rows_have_every_way_for_all_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(inference, "_onnx", lambda net, x: None)
    out = tmp_path / "rows.jsonl"
    rows = inference.inference_study(out, dynamics=("hamiltonian",), sizes=(8,), batch=2, repeats=1, device="cpu")
    assert [row["network"] for row in rows] == ["hamiltonian", "resnet18, 3x3 opening", "mobilenet_v3_small"]
    assert [json.loads(line)["network"] for line in out.read_text().splitlines()] == [row["network"] for row in rows]
    for row in rows:
        assert min(row[f"{way}_over_floor"] for way in ("as_trained", "folded", "in_use")) > 0
        assert min(row[name] for name in ("one_ms", "one_as_trained_ms", "images_per_second", "megaflops")) > 0


def test_the_floor_has_all_convolutions_of_the_network(monkeypatch):
    net, x = PDENet(NetworkConfig("hamiltonian", (4, 8), 8, steps=2, size=8)).eval(), torch.randn(3, 3, 8, 8)
    seen = []
    convolution = torch.convolution
    call = inference._floor(net, x, Compute(torch.device("cpu")))
    monkeypatch.setattr(torch, "convolution", lambda y, w, *rest: seen.append(w.shape) or convolution(y, w, *rest))
    call()
    assert len(seen) == 1 + 2 * 2 * 2 * 2 + 2  # the opening, K and its transpose in two layers of each step, 1x1
    with ConvolutionRecorder() as recorder, torch.no_grad():
        net(x)
    assert seen == [weight.shape for _, _, weight, *_ in recorder.found]


def test_a_batch_of_none_is_told():
    with pytest.raises(ValueError, match=r"^batch must be positive, got 0$"):
        inference.inference_study(batch=0)
