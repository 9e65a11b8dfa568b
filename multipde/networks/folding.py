"""Networks for evaluation alone: stencils baked, and in a `PDENet` time steps and BatchNorm folded into them."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from multipde.mesh.modes import copied, ordinary_tensors
from multipde.mesh.parametrization import StencilParametrization
from multipde.mesh.reparametrize import bake, stored_stencils
from multipde.networks.config import NetworkConfig
from multipde.networks.network import PDENet
from multipde.networks.plain import PlainNet


@ordinary_tensors()
@torch.no_grad()
def folded(model: nn.Module) -> nn.Module:
    """A copy for evaluation in which no work is left that can be done once.

    A `PDENet` becomes a `PlainNet`, of plain convolutions: the stencils of its mesh, with the weights of every time
    step interpolated, contain dt and the sign of the step; BatchNorm, with its running statistics, is contained in the
    convolution before it. Products are computed in float64. Any other network keeps its layers, and its stencils are
    baked; so does a `PDENet` with other layers, hooks or parametrizations than it was made with.
    """
    if is_as_made(model):
        return _plain(model)  # pyright: ignore[reportArgumentType]
    net = copied(model).eval()
    return bake(net) if stored_stencils(net) else net


def is_as_made(model: nn.Module) -> bool:
    """Whether a network is a `PDENet` that computes what its config says: with the layers that it was made with."""
    if type(model) is not PDENet or _layers_of(model) != _layers_of_config(model.config):
        return False  # a subclass may compute something else
    for m in model.modules():
        others = [p for p in m.parametrizations.values() for p in p] if parametrize.is_parametrized(m) else []  # pyright: ignore
        if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m):
            return False
        if any(type(other) is not StencilParametrization for other in others):
            return False
    return True


def _layers_of(model: nn.Module) -> list[tuple[str, type, str]]:
    """Name, type and settings of every layer, whether its stencils are baked or not."""
    named = [(name, m) for name, m in model.named_modules() if "parametrizations" not in name and name]
    return [(name, parametrize.type_before_parametrizations(m), m.extra_repr()) for name, m in named]


@lru_cache(maxsize=64)
def _layers_of_config(config: NetworkConfig) -> list[tuple[str, type, str]]:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return _layers_of(config.build())


def plain_arguments(model: PDENet) -> dict[str, Any]:
    """The arguments of the `PlainNet` of a network, as plain data."""
    c, conv = model.config, model.opening[0]
    pads = model.opening.pads[:2] or (conv.padding[0],) * 2  # pyright: ignore
    names = ("dynamics", "channels", "out_channels", "in_channels", "classes", "dim", "width", "detail")
    own = {name: getattr(c, name) for name in (*names, "norm", "activation", "eps")}
    opening = {"opening_width": conv.kernel_size[0], "opening_pads": pads}  # pyright: ignore
    return own | opening | {"steps": c.block_steps, "dilation": c.block_dilation}


def _plain(model: PDENet) -> PlainNet:
    weight = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        net = PlainNet(**plain_arguments(model)).to(weight.device, weight.dtype).eval()
    _fold_norm(net.opening, model.opening)
    for new, old in zip(net.connectors, model.connectors, strict=True):
        _fold_norm(new, old)  # pyright: ignore[reportArgumentType]
    for new, old in zip(net.blocks, model.blocks, strict=True):
        for layers, forces in zip(new.steps, old.forces(), strict=True):  # pyright: ignore
            factors = FACTORS[model.config.dynamics](old.dt)  # pyright: ignore
            for layer, force, factor in zip(layers, forces, factors, strict=True):
                first, *norm, second = force.controls if hasattr(force.layer, "conv2") else _transposed(force.controls)
                layer.first.weight.copy_(first)
                layer.second.weight.copy_(factor * second.double())
                for values, own in zip(norm, (layer.scale, layer.bias) if norm else (), strict=True):
                    own.copy_(values.view_as(own))
    net.classifier.load_state_dict(model.classifier.state_dict())
    return net


FACTORS: dict[str, Any] = {
    "parabolic": lambda dt: (dt,),
    "resnet": lambda dt: (dt,),
    "hamiltonian": lambda dt: (dt, -dt),
    "second_order": lambda dt: (dt**2,),
}
"""The factors by which the layers of a time step are multiplied, see `Block`."""


def _transposed(controls: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The controls of a symmetric layer, followed by the stencils of -Kᵀ as those of a plain convolution."""
    stencils = controls[0]
    return *controls, -stencils.transpose(0, 1).flip(*range(2, stencils.dim()))


def _fold_norm(new: nn.Module, old: nn.Sequential) -> None:
    """K x + b for w (K x - μ)/sqrt(σ² + ε) + β, with the running statistics."""
    conv, norm = old[0], old[1]
    assert isinstance(norm, _BatchNorm)
    mean, variance, weight, bias = (
        t.double()  # pyright: ignore[reportOptionalMemberAccess]
        for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    scale = weight * (variance + norm.eps).rsqrt()
    taps = conv.weight.double()  # pyright: ignore
    new.weight.copy_(taps * scale.view(-1, *(1,) * (taps.dim() - 1)))  # pyright: ignore
    new.bias.copy_(bias - mean * scale)  # pyright: ignore
