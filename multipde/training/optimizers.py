"""Optimizers for any module: which of its parameters are stencils, norm biases, and others."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from multipde.mesh.randomness import OwnRandomness
from multipde.mesh.reparametrize import stencil_parametrization, stored_parameter, stored_stencils
from multipde.networks.all_sizes import NORMS
from multipde.networks.model_spec import ModelSpec
from multipde.training.muon import Muon
from multipde.training.parameter_groups import split_groups

OPTIMIZERS = ("sgd", "muon", "adamw")
ADAMW_RATE = 0.04
"""Learning rate of AdamW as a multiple of that of the schedule, whose peak of 0.1 is one for SGD."""
WEIGHT_DECAY = {"sgd": 0.0, "muon": 0.06, "adamw": 0.02}
"""Default weight decay of the stencils, which is multiplied by their learning rate."""


def make_optimizer(
    module: nn.Module,
    name: str = "muon",
    learning_rate: float = 0.1,
    *,
    momentum: float = 0.9,
    nesterov: bool | None = None,
    stencil_rate: float = 0.5,
    stencil_momentum: float = 0.6,
    weight_decay: float | None = None,
    bias_rate: float = 1.0,
    rates: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.Optimizer:
    """An optimizer for all parameters of a module, in groups by the kind of their layer.

    ``"sgd"`` is stochastic gradient descent with momentum. ``"muon"`` orthogonalises the momentum of all stencils of
    convolutions, 1x1 and grouped ones among them, see `Muon`; for the rest it is SGD. ``"adamw"`` is AdamW at 0.04
    times the learning rate. The learning rate of a group is ``learning_rate`` times its ``rate_factor``.

    In a reparametrised layer the stored parameter is updated, but what ``"muon"`` orthogonalises is the update of the
    stencils that follow from it on the present mesh.

    Args:
        module: the network.
        name: ``"sgd"``, ``"muon"`` or ``"adamw"``.
        learning_rate: learning rate of SGD, to which the others are relative.
        momentum: momentum of SGD; for AdamW β₁.
        nesterov: use Nesterov's momentum; None for yes with ``"muon"``, and no with ``"sgd"``.
        stencil_rate: learning rate of orthogonalised stencils as a multiple of ``learning_rate``.
        stencil_momentum: momentum of orthogonalised stencils.
        weight_decay: weight decay of the stencils, multiplied by their learning rate; None for 0.06 with ``"muon"``,
            0.02 with ``"adamw"`` and 0 with ``"sgd"``. It is decoupled from the gradient, except that SGD adds it to
            the gradient.
        bias_rate: factor of the learning rate of the biases of norms.
        rates: further factors of the learning rates of single parameters; if given, parameters that require no gradient
            are left out.

    Raises:
        ValueError: the optimizer is unknown, or the module has no convolution for ``"muon"``.

    Reference: Loshchilov & Hutter (2019), Decoupled weight decay regularization, for AdamW; `Muon` names its own.
    """
    check_optimizer(name)
    stencils, biases = stencil_groups(module), _norm_biases(module)
    if name == "muon" and not stencils:
        raise ValueError("optimizer must be sgd or adamw for a module without convolutions, got 'muon'")
    known = {id(p) for group in (*stencils.values(), biases) for p in group}
    others = [p for p in module.parameters() if id(p) not in known]
    is_adam, is_muon = name == "adamw", name == "muon"
    factor = ADAMW_RATE if is_adam else 1.0
    decay = WEIGHT_DECAY[name] if weight_decay is None else weight_decay
    own = {"rate_factor": stencil_rate, "momentum": stencil_momentum, "orthogonal": True} if is_muon else {}
    groups: list[dict[str, Any]] = []
    for k, params in stencils.items():
        split = {"conv_groups": k} if is_muon else {}
        groups.append({"params": params, "rate_factor": factor, "weight_decay": decay, **own, **split})
    groups.append({"params": biases, "rate_factor": factor * bias_rate, "weight_decay": 0.0})
    groups.append({"params": others, "rate_factor": factor, "weight_decay": 0.0})
    groups = _merged(groups if rates is None else split_groups(groups, rates), learning_rate)
    if is_muon:
        own = {"nesterov": nesterov is not False, "orthogonal": False, "parametrizations": stored_stencils(module)}
        return Muon(groups, momentum=momentum, **own)
    fused = next(module.parameters()).device.type in ("cpu", "cuda")
    if is_adam:
        return torch.optim.AdamW(groups, betas=(momentum, 0.999), fused=fused)
    return torch.optim.SGD(groups, momentum=momentum, nesterov=bool(nesterov), fused=fused)


def _merged(groups: list[dict[str, Any]], learning_rate: float) -> list[dict[str, Any]]:
    """The groups with their learning rates; empty ones are left out, and groups with the same options are joined."""
    merged: dict[tuple, list[nn.Parameter]] = {}
    for group in groups:
        options = tuple((key, value) for key, value in group.items() if key != "params")
        merged.setdefault(options, []).extend(group["params"])
    found = [{"params": params, **dict(options)} for options, params in merged.items() if params]
    return [group | {"lr": learning_rate * group["rate_factor"]} for group in found]


def stencil_groups(module: nn.Module) -> dict[int, list[nn.Parameter]]:
    """The stored parameters of all convolutions, by their number of convolution groups.

    A transposed convolution counts as its adjoint. A weight that is parametrised otherwise has no stencil stored.
    """
    found: dict[int, list[nn.Parameter]] = {}
    seen: set[int] = set()
    for layer in module.modules():
        if not isinstance(layer, _ConvNd) or parametrize.is_parametrized(layer, "weight") != bool(
            stencil_parametrization(layer)
        ):
            continue
        p = stored_parameter(layer)
        if isinstance(p, nn.Parameter) and id(p) not in seen:
            seen.add(id(p))
            found.setdefault(layer.groups, []).append(p)
    return found


def _norm_biases(module: nn.Module) -> list[nn.Parameter]:
    """The biases of all normalisations."""
    found = [layer._parameters.get("bias") for layer in module.modules() if isinstance(layer, NORMS)]
    return list({id(p): p for p in found if p is not None}.values())


def optimizer_flops(optimizer: torch.optim.Optimizer) -> int:
    """Floating point operations of the products in one step, as torch counts them; SGD and AdamW have none."""
    return optimizer.flops() if isinstance(optimizer, Muon) else 0


def planned_flops(network: ModelSpec, name: str) -> int:
    """`optimizer_flops` of a network that has not been made yet, from its description."""
    if name != "muon":
        return 0
    with OwnRandomness():
        return optimizer_flops(make_optimizer(network.build(), name))


def check_optimizer(name: str) -> None:
    """Raise ValueError for an unknown optimizer."""
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
