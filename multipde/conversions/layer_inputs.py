"""The inputs of the stencil layers of a network, wherever the layers are applied."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from multipde.mesh.modes import copied, first_input, hooked
from multipde.mesh.reparametrize import bake, stencil_layers, stencil_parametrization
from multipde.networks.dynamics import Block
from multipde.networks.layers import ControlledLayer

Watch = Callable[[str, _ConvNd, Tensor], None]
"""A function (name of the layer, layer, input of the layer), called before the layer is applied."""


class WatchedCopy:
    """A baked copy of a model that reports the input of every stencil layer; a watch function may change weights.

    Hooks of users are not copied.

    Attributes:
        layers: the stencil layers of the copy by name.
        weights: their stencils before any change.
        reactions: averaging taps of the terms of order zero in their bases, see `StencilBasis`.
        groups: layers that are reported under one name, by the name of the first layer. Usually every layer is a group
            by itself; in a block with fewer controls than steps, corresponding layers of all controls form a group.
    """

    def __init__(self, model: nn.Module):
        own = {name: stencil_parametrization(layer) for name, layer in stencil_layers(model).items()}
        self.reactions = {name: p.reaction if p else "121" for name, p in own.items()}
        self.model = copied(model, hooks=False)
        if any(own.values()):
            bake(self.model)
        self.layers = stencil_layers(self.model)
        self.weights = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}
        self.groups = _groups(self.model, self.layers)

    @torch.no_grad()
    def run(self, images: Tensor, watch: Watch, *, batch_statistics: bool = False) -> Tensor:
        """The output for images in evaluation mode, in which BatchNorm can use the statistics of these images."""
        names = {id(self.layers[name]): name for name in self.groups}

        def tell(layer: nn.Module, x: Tensor) -> None:
            if id(layer) in names:
                watch(names[id(layer)], layer, x)  # pyright: ignore[reportArgumentType]

        def see(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            tell(layer, first_input(inputs, named))

        controlled = [m for m in self.model.modules() if isinstance(m, ControlledLayer)]
        inner = {id(conv) for m in controlled for conv in m.children()}
        others = [m for m in self.model.modules() if id(m) in names and id(m) not in inner]
        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.train(batch_statistics)
        try:
            for module in controlled:
                module.watch = tell
            with hooked(m.register_forward_pre_hook(see, with_kwargs=True) for m in others):
                return self.model(images)
        finally:
            for module in controlled:
                module.watch = None


def _groups(model: nn.Module, layers: dict[str, _ConvNd]) -> dict[str, list[str]]:
    leader = {name: name for name in layers}
    for block_name, block in model.named_modules():
        if isinstance(block, Block) and len(block.controls) < block.steps:
            prefix = f"{block_name}.controls." if block_name else "controls."
            for name in layers:
                if name.startswith(prefix):
                    leader[name] = f"{prefix}0.{name.removeprefix(prefix).split('.', 1)[1]}"
    groups: dict[str, list[str]] = {}
    for name, first in leader.items():
        groups.setdefault(first, []).append(name)
    return groups
