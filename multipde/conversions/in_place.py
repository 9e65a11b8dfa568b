"""Conversion in place: the module, its parameters and all that holds them stay the same objects."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multipde.conversions.convert import Conversion, conversion
from multipde.conversions.left_alone import tell_left_alone
from multipde.conversions.optimizer_state import State, check_rule, moved_states, plain_parameters
from multipde.mesh.modes import averaged, ordinary_tensors
from multipde.mesh.reparametrize import stored_stencils

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None


@ordinary_tensors()
def convert_(
    model: nn.Module, *, optimizer: Optimizers = None, ema: nn.Module | None = None, rule: str = "map", **how: Any
) -> Conversion:
    """Convert a network in place, together with its optimizer and its average, in the middle of a training.

    The module, its submodules and its parameters stay the same objects, so that whatever holds them goes on: the
    optimizer with its groups and learning rates, a scheduler, a ``GradScaler``, hooks. Parameters that more time steps
    add join the group of their neighbour in time; those that fewer steps remove leave it. Gradients are discarded.
    The running statistics of BatchNorm are copied; `recalibrate` measures them at the new size.

    Args:
        model: the network, not wrapped by DDP or ``torch.compile``; of a Lightning module or an ``Accelerator`` the
            network inside.
        optimizer: the optimizer or optimizers of its parameters, see `carry_optimizer_state` for what happens to their
            state. One that wraps another (Lookahead, SAM) is given together with the one inside.
        ema: an average of the network with the same layers, such as torch's ``AveragedModel``; it is converted alike.
        rule: the rule of `carry_optimizer_state`.
        how: ``size``, ``factor``, ``method``, ``steps``, ``calibration``, ``detail``, ``skip``, ``example``, as for
            `convert`.

    Returns:
        The conversion that was applied.

    Raises:
        ValueError: as for `convert`; or the average has other parameters. Nothing has been changed then.
    """
    check_rule(rule)
    move = conversion(model, **how)
    net, average = averaged(model) or model, None if ema is None else averaged(ema) or ema
    if how.get("size") is not None or how.get("factor") is not None:
        tell_left_alone(net, move.skip, move.factor, move.detail)
    if average is not None and [*plain_parameters(average)] != [*plain_parameters(net)]:
        other = next(iter({*plain_parameters(average)} ^ {*plain_parameters(net)}), "another order")
        raise ValueError(f"ema must have the parameters of the model, got a difference in {other!r}")
    new, new_average = move(net), None if average is None else move(average)
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer or ())
    states = [moved_states(move, net, each, new, rule) for each in optimizers]  # all errors before any change
    old = plain_parameters(net)
    _graft(net, new)
    if average is not None and new_average is not None:
        _graft(average, new_average)
    for each, found in zip(optimizers, states, strict=True):
        _regroup(each, old, plain_parameters(net), found)
        _refresh_parametrizations(each, net)
    return move


@torch.no_grad()
def _graft(net: nn.Module, new: nn.Module) -> None:
    """Make a network equal to its converted copy, and keep its modules and parameters."""
    old = plain_parameters(net)
    _graft_module(net, new)
    kept = {id(p): old[name] for name, p in plain_parameters(net).items() if name in old}
    for module in net.modules():
        for leaf, p in module._parameters.items():
            if (own := kept.get(id(p))) is not None and p is not None:
                own.data, own.grad = p.data, None
                module._parameters[leaf] = own


def _graft_module(old: nn.Module, new: nn.Module) -> None:
    for name, value in vars(new).items():
        if _is_data(value):
            old.__dict__[name] = value
    old._parameters.clear()
    old._parameters.update(new._parameters)
    for name, value in new._buffers.items():
        kept = old._buffers.get(name)
        if isinstance(kept, Tensor) and isinstance(value, Tensor):
            kept.data = value.data
        else:
            old._buffers[name] = value
    for name in [*old._modules]:
        if name not in new._modules:
            del old._modules[name]
    for name, child in new._modules.items():
        kept = old._modules.get(name)
        if kept is not None and child is not None and _is_alike(type(kept), type(child)):
            _graft_module(kept, child)
        else:  # a layer that has become a plain convolution, or that more time steps add
            old._modules[name] = child


def _is_alike(a: type, b: type) -> bool:
    """Whether two classes of modules are the same; every parametrised layer has a class of its own."""
    return a is b or (a.__name__ == b.__name__ and a.__bases__ == b.__bases__ and a.__module__ == b.__module__)


def _is_data(value: Any) -> bool:
    """Whether an attribute is plain data, which a conversion may change: numbers, text, descriptions, lists of them."""
    if isinstance(value, list | tuple):
        return all(_is_data(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str) or (is_dataclass(value) and not callable(value))


def _regroup(
    optimizer: torch.optim.Optimizer,
    old: dict[str, nn.Parameter],
    new: dict[str, nn.Parameter],
    states: dict[str, State],
) -> None:
    """Put the parameters of the converted network in the groups of the optimizer, and set their state."""
    removed = {id(p) for name, p in old.items() if name not in new}
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for p in old.values():
        optimizer.state.pop(p, None)
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in removed]
    for name, p in new.items():
        if name not in old and (group := groups.get(id(old[_neighbour(name, old)]))) is not None:
            group["params"].append(p)
            groups[id(p)] = group
        if id(p) in groups and name in states:
            optimizer.state[p] = states[name]


def _neighbour(name: str, names: Iterable[str]) -> str:
    """The name that differs only in its numbers, and least: that of the neighbouring time step."""
    alike = [other for other in names if re.sub(r"\d+", "#", other) == re.sub(r"\d+", "#", name)]
    return min(alike, key=lambda other: [abs(a - b) for a, b in zip(_numbers(name), _numbers(other), strict=True)])


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def _refresh_parametrizations(optimizer: torch.optim.Optimizer, net: nn.Module) -> None:
    """Tell `Muon` the parametrizations of stencils that are new."""
    known = getattr(optimizer, "parametrizations", None)
    if isinstance(known, dict) and (found := stored_stencils(net)):
        known.clear()
        known.update(found)
