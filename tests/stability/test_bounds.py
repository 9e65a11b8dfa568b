"""Step bounds of whole networks, measured along data."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportArgumentType=false

import math

import pytest
import torch

from multipde import NetworkConfig, PDENet, convert, operator_norm, stability_report, stable_steps, step_bound
from multipde.stability.bounds import StepStability, step_ratios


def network(dynamics: str = "hamiltonian", **options) -> PDENet:
    torch.manual_seed(0)
    arguments = {"channels": (4, 6), "out_channels": 6, "size": 8, "steps": 2} | options
    return PDENet(NetworkConfig(dynamics, **arguments)).double().eval()


def images() -> torch.Tensor:
    return torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dynamics", ["parabolic", "hamiltonian", "second_order"])
def test_without_norm_and_nonlinearity_the_measured_bound_is_the_proved_one(dynamics):
    net = network(dynamics, norm="none", activation="identity")
    report = stability_report(net, images(), num_iterations=400)
    assert [(s.block, s.step) for s in report] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for s in report:
        node = net.blocks[s.block].controls[s.step]
        norms = [operator_norm(layer.conv.weight, 8 // 2**s.block) for layer in node]
        assert s.norms == pytest.approx(norms)
        assert s.bound == pytest.approx(step_bound(dynamics, norms))
        assert s.measured == pytest.approx(s.bound, rel=2e-3)


def test_with_relu_it_is_no_smaller():
    for s in stability_report(network(norm="none"), images(), num_iterations=200):
        assert s.measured >= s.bound * (1 - 1e-6)


def test_with_the_tv_norm_it_is_the_jacobian_by_definition():
    net = network("parabolic", steps=1, channels=(4,))
    (step,) = stability_report(net, images()[:1], num_iterations=400)
    y = net.opening(images()[:1])
    layer = net.blocks[0].controls[0][0]
    jacobian = torch.autograd.functional.jacobian(layer, y).reshape(y.numel(), y.numel())
    assert step.measured == pytest.approx(2 / torch.linalg.matrix_norm(jacobian, 2).item(), rel=5e-3)


def test_the_number_of_steps_that_mends_it():
    rows = [StepStability(0, 0, 1.0, (1.0,), 0.1, 0.4), StepStability(0, 1, 1.0, (1.0,), 0.1, 0.8)]
    rows += [StepStability(1, 0, 1.0, (1.0,), 3.0, 4.0), StepStability(1, 1, 1.0, (1.0,), 0.5, 2.0)]
    assert step_ratios(rows) == (2.5, 0.5)
    assert stable_steps(rows) == (5, 2)
    assert stable_steps(rows, (2.5, 0.1)) == (2, 2)
    assert stable_steps(rows, (1.25, 1.0)) == (4, 2)
    assert [s.verdict for s in rows] == ["above the bound", "above the bound", "stable", "stable on data"]


def test_the_report_leaves_the_network_as_it_was_and_knows_shared_controls():
    net = network(steps=4, controls=2).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    report = stability_report(net, images())
    assert len(report) == 8
    assert all(math.isfinite(s.measured) for s in report)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert net.training


def test_rediscretising_onto_a_finer_mesh_lowers_the_bound_and_copying_does_not():
    net, x = network(), images()
    fine = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    bounds = {m: min(s.bound for s in stability_report(convert(net, size=16, method=m), fine)) for m in
              ("copy", "rediscretize")}  # fmt: skip
    own = min(s.bound for s in stability_report(net, x))
    assert 0.75 * own < bounds["copy"] <= own  # a larger mesh holds the smaller one, so |K| cannot shrink
    assert bounds["rediscretize"] < own / 10


def test_resnet_has_no_bound():
    with pytest.raises(ValueError, match="dynamics must be parabolic, hamiltonian or second_order to have a bound"):
        stability_report(network("resnet"), images())
