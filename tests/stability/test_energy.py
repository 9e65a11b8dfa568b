"""Energies along a network: what the theory keeps is kept, what it lowers falls."""

# pyright: reportOperatorIssue=false

import itertools

import pytest
import torch

from multipde import NetworkConfig, PDENet
from multipde.stability.energy import state_energies


def points(dynamics, steps, **options):
    torch.manual_seed(0)
    config = NetworkConfig(dynamics, (8, 4), 4, size=16, steps=steps, dt=1 / steps, **{"controls": 1} | options)
    return state_energies(PDENet(config).double(), torch.randn(3, 3, 16, 16).double())


def test_the_parabolic_energy_falls():
    for block in (0, 1):
        energies = [p.energy for p in points("parabolic", 10, norm="none") if p.block == block]
        assert all(after < before for before, after in itertools.pairwise(energies))


@pytest.mark.parametrize("dynamics", ["hamiltonian", "second_order"])
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_the_hyperbolic_energy_is_kept_to_second_order_in_dt(dynamics, activation):
    drifts = []
    for steps in (10, 20, 40):
        energies = [p.energy for p in points(dynamics, steps, norm="none", activation=activation) if p.block == 0]
        drifts.append(abs(energies[-1] - energies[0]) / energies[0])
    assert drifts[0] < 0.02
    for coarse, fine in itertools.pairwise(drifts):
        assert coarse / fine == pytest.approx(4, rel=0.2)


def test_points_lie_at_the_steps_of_each_block():
    found = points("resnet", 4, controls=None)
    assert [(p.block, p.time) for p in found] == [(k, j / 4) for k in (0, 1) for j in range(5)]
    assert all(p.energy is None for p in found)


def test_features_are_those_that_reach_the_first_block():
    torch.manual_seed(0)
    net = PDENet(NetworkConfig("hamiltonian", (8,), 4, size=16)).eval()
    x = torch.randn(3, 3, 16, 16)
    first, *_, last = state_energies(net, x)
    with torch.no_grad():
        y = net.opening(x)
        z = net.blocks[0](y)
    assert first.features == pytest.approx(y.square().sum(1).mean().item() / 2, rel=1e-5)
    assert last.features == pytest.approx(z.square().sum(1).mean().item() / 2, rel=1e-5)
