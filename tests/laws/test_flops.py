"""The closed form of a network's operations is what torch counts when the network runs."""

from dataclasses import replace

import pytest
import torch

from multipde import NetworkConfig
from multipde.networks.cost import counted_flops

BASE = NetworkConfig("hamiltonian", (4, 6, 8), 10, steps=(1, 2, 3), size=8, classes=7, in_channels=2)

NETWORKS = {
    **{dynamics: {"dynamics": dynamics} for dynamics in ("parabolic", "hamiltonian", "second_order", "resnet")},
    "one block": {"channels": (4,), "steps": 2},
    "five taps": {"width": 5},
    "one tap": {"width": 1},
    "an axis longer": {"size": (8, 12)},
    "one axis": {"dim": 1},
    "three axes": {"dim": 3, "channels": (2, 4), "steps": 1, "size": 4},
    "detail": {"detail": 3},
    "few controls": {"controls": (1, 1, 2)},
    "dilated": {"dilation": 2},
    "dilated from the second block on": {"dilation": (1, 2, 2)},
    "an even opening": {"opening_width": 6, "dilation": 2},
    "no norm": {"norm": "none", "activation": "tanh"},
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
def test_the_closed_form_is_what_torch_counts(changes, training):
    config = replace(BASE, **changes)
    with torch.device("meta"):
        net = config.build()
    assert config.flops(training) == counted_flops(config, net, training)


def test_stencils_from_coefficients_cost_an_image_nothing():
    assert replace(BASE, coordinates="beta").flops(training=True) == BASE.flops(training=True)


@pytest.mark.parametrize("memory", ["reversible", "checkpoint"])
def test_what_is_computed_again_is_counted(memory):
    config = replace(BASE, memory=memory)
    assert config.flops(training=True) is None
    assert config.flops(training=False) == BASE.flops(training=False)
