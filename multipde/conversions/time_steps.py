"""Change of the number of time steps over the same final times, by interpolation of the controls."""

from collections.abc import Sequence

import torch
from torch import nn

from multipde.mesh.modes import copied
from multipde.networks.controls import interpolation_matrix
from multipde.networks.model_spec import Model, spec_of


def with_steps(net: Model, steps: int | tuple[int, ...]) -> Model:
    """A copy on another time grid with the same final times T = dt · steps; the same module if nothing changes.

    A new node of the grid is a copy of the old one that is nearest in time, with interpolated parameters; they are
    trained where one of those that they are interpolated from is.
    """
    spec = spec_of(net)
    config = spec.with_steps(steps)
    if config is spec:
        return net
    result = copied(net)
    result.multipde_spec = config  # pyright: ignore
    times = zip(config.block_steps, config.block_dt, config.block_controls, strict=True)  # pyright: ignore
    for block, (num_steps, dt, num_controls) in zip(result.blocks, times, strict=True):  # pyright: ignore
        matrix = interpolation_matrix(len(block.controls), num_controls, config.interpolation)  # pyright: ignore
        block.controls = nn.ModuleList(_interpolated(list(block.controls), row) for row in matrix.tolist())
        block.steps, block.dt = num_steps, dt
        block.time_weights = interpolation_matrix(num_controls, num_steps, config.interpolation).tolist()  # pyright: ignore
    return result


@torch.no_grad()
def _interpolated(nodes: Sequence[nn.Module], weights: Sequence[float]) -> nn.Module:
    """The node of the time grid whose parameters have these weights in those of the old nodes."""
    node = copied(nodes[max(range(len(nodes)), key=lambda j: weights[j])])
    old = [(w, dict(each.named_parameters())) for w, each in zip(weights, nodes, strict=True) if w]
    for name, p in node.named_parameters():
        p.copy_(sum(w * own[name] for w, own in old)).requires_grad_(any(own[name].requires_grad for _, own in old))  # pyright: ignore
    return node
