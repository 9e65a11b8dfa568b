"""Growth of perturbations and energy along time: blocks whose growth is known, and bounds that hold."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportArgumentType=false

from dataclasses import replace

import pytest
import torch

from multipde import NetworkConfig, PDENet, growth_bound, growth_report, operator_norm
from multipde.networks.dynamics import DYNAMICS
from multipde.stability.bounds import stability_report
from multipde.stability.norms import step_norms
from tests.stability.test_bounds import images, network

K, DT, STEPS = 0.8, 0.9, 3
W = DT * K**2


def scalar_network(dynamics: str, k: float = K, num_blocks: int = 2) -> PDENet:
    """N = identity, σ = identity, and every stencil k times the identity: blocks act on all pixels alike."""
    net = network(dynamics, norm="none", activation="identity", steps=STEPS, dt=DT, channels=(4, 6)[:num_blocks])
    with torch.no_grad():
        for block in net.blocks:
            for layer in block.controls.modules():
                for name in ("conv", "conv2"):
                    if hasattr(layer, name):
                        conv = getattr(layer, name)
                        delta = torch.zeros_like(conv.weight)
                        delta[range(len(delta)), range(len(delta)), 1, 1] = k
                        conv.weight = delta
    return net


def at_dt(net: PDENet, dt: float, **changes) -> PDENet:
    """The same stencils with other time steps."""
    moved = PDENet(replace(net.config, dt=dt, **changes)).double().eval()
    moved.load_state_dict(net.state_dict())
    return moved


def scalar_growth(dynamics: str) -> float:
    if dynamics == "parabolic":
        return abs(1 - W) ** STEPS
    if dynamics == "resnet":
        return (1 + W) ** STEPS
    if dynamics == "hamiltonian":
        step = torch.tensor([[1, -W], [W, 1 - W**2]], dtype=torch.float64)
        return torch.linalg.matrix_norm(torch.linalg.matrix_power(step, STEPS), 2).item()
    y, before = 1.0, 1.0
    for _ in range(STEPS):
        y, before = 2 * y - before - DT * W * y, y
    return abs(y)


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_growth_of_scalar_blocks_is_that_of_numbers(dynamics):
    for g in growth_report(scalar_network(dynamics), images()[:2], num_iterations=40):
        assert g.worst == pytest.approx([scalar_growth(dynamics)] * 2, rel=1e-4)
        assert all(r <= w * (1 + 1e-9) for r, w in zip(g.random, g.worst, strict=True))
        assert max(g.worst) <= g.bound * (1 + 1e-9)
        if dynamics != "hamiltonian":  # all perturbations of a scalar block grow alike
            assert g.random == pytest.approx(g.worst, rel=1e-6)


@pytest.mark.parametrize(("dynamics", "k"), [("resnet", K), ("parabolic", 2.0)])
def test_bounds_that_are_sharp(dynamics, k):
    for g in growth_report(scalar_network(dynamics, k), images(), num_iterations=50):
        assert g.worst == pytest.approx([g.bound] * 3)
        assert g.measured_bound == pytest.approx(g.worst)


def test_a_rotation_keeps_its_length_as_dt_vanishes():
    """y' = -k² z, z' = k² y turns (y, z); the growth of symplectic Euler is 1 + O(dt)."""
    net = scalar_network("hamiltonian", num_blocks=1)
    grown = [
        growth_report(at_dt(net, 1 / n, steps=n, controls=3), images()[:1], num_iterations=80)[0].worst[0] - 1
        for n in (4, 8)
    ]
    assert grown[0] < 0.05
    assert grown[0] / grown[1] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_parabolic_block_at_its_bound_is_non_expansive(activation):
    net = network("parabolic", norm="none", activation=activation)
    net = at_dt(net, min(s.bound for s in stability_report(net, images(), num_iterations=1)))
    for g in growth_report(net, images(), num_iterations=100):
        assert g.bound == pytest.approx(1, abs=1e-5)  # |K| comes from below
        assert max(g.worst) <= 1 + 1e-5
        assert g.measured_bound == pytest.approx([1.0] * 3, abs=1e-5)


@pytest.mark.parametrize("norm", ["none", "tv"])
@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_bounds_hold_for_every_image(dynamics, norm):
    for g in growth_report(network(dynamics, norm=norm, dt=0.3), images()[:1], num_iterations=30):
        for random, worst, bound in zip(g.random, g.worst, g.measured_bound, strict=True):
            assert random <= worst * (1 + 1e-9)
            assert worst <= bound * (1 + 1e-6)
        if norm == "none":
            assert max(g.measured_bound) <= g.bound * (1 + 1e-5)


@pytest.mark.parametrize("memory", ["store", "reversible"])
def test_the_worst_growth_is_the_norm_of_the_jacobian_of_the_block(memory):
    net = network("second_order", channels=(4,), memory=memory)
    (g,) = growth_report(net, images()[:1], num_iterations=150)
    y = net.opening(images()[:1]).detach()
    block = network("second_order", channels=(4,)).blocks[0]
    jacobian = torch.autograd.functional.jacobian(block, y).reshape(y.numel(), y.numel())
    assert g.worst[0] == pytest.approx(torch.linalg.matrix_norm(jacobian, 2).item(), rel=1e-3)


def test_norms_of_resnet_are_those_of_both_convolutions():
    net = network("resnet", norm="none", activation="identity", steps=1)
    for s in step_norms(net, images(), num_iterations=200):
        layer = net.blocks[s.block].controls[0][0]
        product = operator_norm(layer.conv.weight, 8 // 2**s.block) * operator_norm(layer.conv2.weight, 8 // 2**s.block)
        assert s.norms[0] ** 2 == pytest.approx(product)
        assert max(s.jacobians[0]) <= product * (1 + 1e-6)


def test_what_has_no_bound_is_named():
    with pytest.raises(ValueError, match="dissipative must be False for resnet, whose layer is not symmetric"):
        growth_bound("resnet", [[1.0]], 1.0, dissipative=True)
    with pytest.raises(ValueError, match="dynamics must be one of parabolic"):
        growth_bound("heat", [[1.0]], 1.0, dissipative=False)


def test_measuring_leaves_the_network_as_it_was():
    net = PDENet(NetworkConfig("hamiltonian", (4,), 4, size=8)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    growth_report(net, images().float())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training
    assert all(p.grad is None for p in net.parameters())
