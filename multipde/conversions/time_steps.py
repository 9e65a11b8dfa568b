"""Change of the number of time steps over the same final times, by interpolation of the controls."""

import torch

from multipde.mesh.randomness import OwnRandomness
from multipde.mesh.reparametrize import bake, stencil_layers, stencil_parametrization
from multipde.networks.controls import interpolation_matrix
from multipde.networks.dynamics import Block
from multipde.networks.model_spec import Model, spec_of


def with_steps(net: Model, steps: int | tuple[int, ...]) -> Model:
    """The network on another time grid with the same final times T = dt · steps; the same module if nothing changes."""
    spec = spec_of(net)
    config = spec.with_steps(steps)
    if config is spec:
        return net
    with OwnRandomness():
        result: Model = config.build().train(net.training)  # pyright: ignore[reportAssignmentType]
    plain = not any(stencil_parametrization(layer) for layer in stencil_layers(net).values())
    if plain and any(stencil_parametrization(layer) for layer in stencil_layers(result).values()):
        bake(result)
    reference = next(net.parameters())
    result.to(reference.device, reference.dtype)
    result.opening, result.connectors, result.classifier = net.opening, net.connectors, net.classifier
    for old, new in zip(net.blocks, result.blocks, strict=True):  # pyright: ignore
        _interpolate_controls(old, new, config.interpolation)  # pyright: ignore
    return result


@torch.no_grad()
def _interpolate_controls(old: Block, new: Block, interpolation: str) -> None:
    matrix = interpolation_matrix(len(old.controls), len(new.controls), interpolation)
    nodes = [dict(node.named_parameters()) for node in old.controls]
    for row, node in zip(matrix.tolist(), new.controls, strict=True):
        for name, p in node.named_parameters():
            p.copy_(sum(w * old_node[name] for w, old_node in zip(row, nodes, strict=True) if w))  # pyright: ignore
