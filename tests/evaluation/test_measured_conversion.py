"""Conversion with a report, of our own networks and of others."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportArgumentType=false, reportOptionalOperand=false

import json

import pytest
import torch
from torch import nn

from multipde import NetworkConfig, PDENet, convert, load_data, recalibrate, transfer_stencil
from multipde.conversions.state_dict import convert_state_dict, network_with_weights, read_state_dict
from multipde.evaluation.candidates import Evaluator
from multipde.evaluation.measured_conversion import convert_reported
from multipde.mesh.reparametrize import stencil_layers
from multipde.networks.cost import model_flops
from multipde.reports.plots import conversion_figure
from multipde.runtime.device import Compute
from multipde.stability.bounds import step_ratios

OPTIONS = {"num_train": 60, "num_test": 30}


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", size=16, **OPTIONS)


@pytest.fixture(scope="module")
def evaluator(data):
    return Evaluator.of(data, Compute.of("cpu"))


def network(data, size: int = 16) -> PDENet:
    torch.manual_seed(0)
    config = NetworkConfig("hamiltonian", (4, 6), 8, steps=2, size=size, class_names=data.class_names)
    return PDENet(config).eval()


def small_cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    ).eval()


def test_every_method_and_both_rivals_are_tested_and_auto_takes_the_best(data, evaluator):
    net = network(data)
    new, report = convert_reported(net, evaluator, old_size=16, new_size=8)
    names = [c.name for c in report.candidates]
    assert names[:2] == ["original at 16", "original, 8 -> 16"]
    methods = ("copy", "calibrated", "calibrated_full", "rediscretize", "galerkin")
    assert names[2:] == [n for m in methods for n in (m, f"{m}, recalibrated")]
    final = {m: report.candidates[names.index(f"{m}, recalibrated")].validation for m in methods}
    assert final[report.method] == max(final.values())
    assert new.config.size == 8
    assert report.num_recalibrated == 3
    assert [c.size for c in report.candidates] == [16, 16] + [8] * 10
    assert report.candidates[2].flops == model_flops(new, (1, 3, 8, 8))
    assert report.stability_after[0].block == 0


def test_numbers_of_the_layers_are_recomputed(data, evaluator):
    net = network(data)
    new, report = convert_reported(net, evaluator, old_size=16, new_size=32 // 4, method="rediscretize")
    assert report.method == "rediscretize"
    for row in report.layers:
        before = stencil_layers(net)[row.layer].weight
        assert row.norm_before == pytest.approx(before.norm().item(), rel=1e-5)
        assert row.norm_after == pytest.approx(transfer_stencil(before, "rediscretize", 0.5).norm().item(), rel=1e-5)
        assert stencil_layers(new)[row.layer].weight.norm().item() == pytest.approx(row.norm_after, rel=1e-5)
    assert set(report.skipped.values()) == {"1x1"}
    assert json.loads(json.dumps(report.record()))["candidates"][0]["name"] == "original at 16"


def test_consistency_is_zero_for_what_commutes_with_restriction(evaluator):
    """A stencil of ones at the centre commutes with averages, so copying it is exact."""
    net = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10)).eval()
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].weight[:, :, 1, 1] = 1.0
    _, report = convert_reported(net, evaluator, old_size=16, new_size=8, method="copy")
    assert report.layers[0].consistency == pytest.approx(0, abs=1e-5)
    _, other = convert_reported(net, evaluator, old_size=16, new_size=8, method="rediscretize")
    assert other.layers[0].consistency > 0.05


def test_any_classifier_strided_grouped_with_batch_norm(evaluator, figures):
    net = small_cnn()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    new, report = convert_reported(net, evaluator, old_size=8, new_size=16, method="calibrated")
    assert [layer.layer for layer in report.layers] == ["0", "3"]
    assert report.skipped == {"4": "1x1"}
    assert report.stability_after == []
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert new(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
    drawn = {kind: conversion_figure(report, kind) for kind in ("png", "svg")}
    assert drawn["png"].startswith(b"\x89PNG")
    assert drawn["svg"].startswith(b"<?xml")
    growth, consistency, exponent, accuracy = figures[0].axes
    assert [bar.get_width() for bar in growth.patches] == [r.norm_after / r.norm_before for r in report.layers]
    assert [bar.get_width() for bar in consistency.patches] == [r.consistency for r in report.layers]
    assert [bar.get_width() for bar in exponent.patches] == [r.exponent for r in report.layers]
    assert [label.get_text() for label in growth.get_yticklabels()] == ["0", "3"]
    labels = [label.get_text() for label in accuracy.get_yticklabels()]
    for c, point in zip(report.candidates, accuracy.lines, strict=True):
        name = c.name.removesuffix(", recalibrated")
        assert point.get_xdata()[0] == 100 * c.accuracy
        assert labels[point.get_ydata()[0]] == f"{name}, {c.flops / 1e6:.3g} MFLOPs"
    assert conversion_figure(report) == drawn["svg"]


def test_without_images_it_copies_and_measures_nothing(data):
    net = network(data)
    new, report = convert_reported(net, None, old_size=16, new_size=8)
    assert report.method == "copy"
    assert report.candidates == []
    assert {row["exponent"] for row in report.layer_rows()} == {"-"}
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), new.parameters(), strict=True))


def test_steps_alone(data, evaluator):
    new, report = convert_reported(network(data), evaluator, old_size=16, new_size=16, steps=4)
    assert new.config.block_steps == (4, 4)
    assert [c.name for c in report.candidates][:2] == ["original at 16", "copy"]


@pytest.mark.usefixtures("precise_bounds")
def test_steps_follow_the_bound(data, evaluator):
    fine, report = convert_reported(
        network(data, 8), evaluator, old_size=8, new_size=16, method="rediscretize", steps="auto"
    )
    assert all(n in (2, 3, 4) for n in fine.config.block_steps)  # pyright: ignore
    assert max(step_ratios(report.stability_before)) > 1  # the bounds are broken before already
    pairs = zip(step_ratios(report.stability_before), step_ratios(report.stability_after), strict=True)
    assert all(after <= 1.01 * max(1, before) for before, after in pairs)


def test_recalibrated_candidate_is_the_returned_network(data, evaluator):
    net = network(data)
    new, _ = convert_reported(net, evaluator, old_size=16, new_size=8, method="copy")
    plain = convert(net, size=8)
    assert not torch.equal(new.opening[1].running_mean, plain.opening[1].running_mean)
    assert recalibrate(plain, [torch.zeros(4, 3, 8, 8)]) == 3


def test_networks_of_torchvision_with_their_weights(tmp_path):
    from torchvision import models

    torch.manual_seed(0)
    net = models.resnet18(num_classes=7)
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "w.pt")
    read = network_with_weights("resnet18", tmp_path / "w.pt")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), read.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="weights must be those of resnet34, got .*w.pt"):
        network_with_weights("resnet34", tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"arch must be a classifier of torchvision \(resnet18.*\), got 'resnet81'"):
        network_with_weights("resnet81", None)


def test_bare_state_dicts_move_their_stencils_only():
    state = dict(small_cnn().state_dict())
    new, moved = convert_state_dict(state, 0.5, "galerkin")
    assert moved == ["0.weight", "3.weight"]
    torch.testing.assert_close(new["0.weight"], transfer_stencil(state["0.weight"], "galerkin", 0.5))
    assert all(new[k] is v for k, v in state.items() if k not in moved)
    assert list(new) == list(state)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_no_pickled_code_is_run_and_broken_files_get_one_line(tmp_path, capsys):
    import pickle

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 7)
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    for name, message in (
        ("evil.pt", "weights must be a state dict in .safetensors or .pt, got"),
        ("torn.safetensors", "weights must be a state dict in .safetensors or .pt, got"),
        ("numbers.pt", "weights must hold tensors by name, got something else in"),
        ("missing.pt", "weights must be a file, got"),
    ):
        with pytest.raises(ValueError, match=message):
            read_state_dict(tmp_path / name)
    assert "executed" not in capsys.readouterr().out
