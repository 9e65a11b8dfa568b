"""A conversion with as many steps as its bounds want: no bound is broken worse than before."""

import pytest
import torch

from multipde import NetworkConfig, PDENet, conversion, stability_report
from multipde.conversions.stable_conversion import GROWTH, TOLERANCE, stabilized
from multipde.stability.bounds import step_ratios


@pytest.mark.parametrize(("dynamics", "channels", "norm"), [("parabolic", (4, 6), "none"), ("hamiltonian", (4,), "tv")])
def test_no_bound_is_broken_worse_than_before(dynamics, channels, norm):
    torch.manual_seed(0)
    net = PDENet(NetworkConfig(dynamics, channels, 6, steps=2, size=8, norm=norm)).eval()
    images = torch.randn(4, 3, 8, 8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    before = step_ratios(stability_report(net, images[..., ::2, ::2]))
    move = conversion(net, size=16, method="rediscretize")
    plain, new = move(net), stabilized(move, net, before, images)(net)
    allowed = [max(1.0, b) for b in before]
    assert any(r > a for r, a in zip(step_ratios(stability_report(plain, images)), allowed, strict=True))
    for ratio, most in zip(step_ratios(stability_report(new, images)), allowed, strict=True):
        assert ratio <= (1 + TOLERANCE) * most * (1 + 1e-4)
    assert all(2 <= n <= GROWTH * 2 for n in new.config.block_steps)
    assert new.config.final_times == net.config.final_times
