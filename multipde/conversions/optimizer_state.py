"""Conversion of an optimizer's state together with the network."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from multipde.conversions.convert import Conversion
from multipde.mesh.modes import copied
from multipde.mesh.reparametrize import detail_of

RULES = ("map", "dual", "reset")

MEANS = ("momentum_buffer", "exp_avg", "momentum")
"""Entries of the state of optimizers that are running means of gradients."""
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta")
"""Entries that are means or sums of squared gradients."""
WEIGHTS = ("slow_buffer", "lookahead_slow_buff")
"""Entries that are weights, as in Lookahead."""

State = dict[str, Any]


def carry_optimizer_state(
    conversion: Conversion,
    old_model: nn.Module,
    old_optimizer: torch.optim.Optimizer,
    new_model: nn.Module,
    new_optimizer: torch.optim.Optimizer,
    rule: str = "map",
) -> None:
    """Give the optimizer of a converted network the state of the old optimizer, mapped like the parameters.

    The conversion maps the parameters p linearly, p' = P p. Momentum v becomes v' = P v, so that a step and the
    conversion commute: (p - lr v)' = p' - lr v'. The alternatives are v' = P⁻ᵀ v, the map of gradients, and no state at
    all. Optimizers that divide by the root of a second moment s, as Adam does, would have seen the gradients P⁻ᵀ g of
    the new network: their means become P⁻ᵀ m, and s' has the squares of the entries of P⁻ᵀ in place of P. Where the
    detail changes, the opening starts without state. What no rule maps is told in a warning and starts anew.

    Args:
        conversion: the conversion that was applied, see `multipde.conversion`.
        old_model, old_optimizer: the network before the conversion, and its optimizer; neither is changed.
        new_model: the result of ``conversion(old_model)``.
        new_optimizer: a new optimizer of the same kind over the parameters of the new model; its state is set.
        rule: ``"map"`` for P, ``"dual"`` for P⁻ᵀ (the number of steps must not change), ``"reset"`` for no state.

    Raises:
        ValueError: the rule is unknown.
    """
    check_rule(rule)
    if rule == "dual":
        conversion.dual(old_model)  # raises an error where there is no such map
    found = moved_states(conversion, old_model, old_optimizer, new_model, rule)
    held = {id(p) for group in new_optimizer.param_groups for p in group["params"]}
    for name, p in plain_parameters(new_model).items():
        if id(p) in held and name in found:
            new_optimizer.state[p] = found[name]


def moved_states(
    conversion: Conversion, old_model: nn.Module, optimizer: torch.optim.Optimizer, new_model: nn.Module, rule: str
) -> dict[str, State]:
    """The state of every parameter of the converted network, by its plain name; arguments as before."""
    old = plain_parameters(old_model)
    states: dict[str, State] = {name: optimizer.state.get(p, {}) for name, p in old.items()}
    if rule == "reset" or not any(states.values()):
        return {}
    keys = {key for name, s in states.items() for key, v in s.items() if _is_like(v, old[name].shape)}
    has_squares = bool(keys & set(SQUARES))
    kinds = {key: "square" if key in SQUARES else "map" if key in WEIGHTS else "dual" if has_squares else rule
             for key in keys if key in (*SQUARES, *WEIGHTS, *MEANS)}  # fmt: skip
    several = {k for s in states.values() for k, v in s.items() if any(_is_wide(leaf) for leaf in tree_leaves(v))}
    unknown = sorted((keys | several) - set(kinds))  # such as a moment by rows and columns, or a list of gradients
    moved = {key: _moved(conversion, old_model, states, key, kind) for key, kind in kinds.items()}
    return _joined(old_model, new_model, states, moved, unknown, type(optimizer).__name__)


def _joined(
    old_model: nn.Module,
    new_model: nn.Module,
    states: Mapping[str, State],
    moved: Mapping[str, Mapping[str, Tensor]],
    unknown: list[str],
    optimizer: str,
) -> dict[str, State]:
    """The moved entries together with those that have no shape, such as the number of steps."""
    old, found, anew = plain_parameters(old_model), {}, []
    common = next((state for state in states.values() if state), {})  # of parameters that more time steps add
    for name, p in plain_parameters(new_model).items():
        own = states.get(name) or (common if name not in old else {})
        values = {key: tensors[name] for key, tensors in moved.items() if key in own}
        is_kept = name in old and old[name].shape == p.shape and torch.equal(old[name].detach().cpu(), p.detach().cpu())
        if any(v.shape != p.shape for v in values.values()) or (set(unknown) & set(own) and not is_kept):
            anew.append(name)
            continue
        # fused optimizers need the memory layout of the parameter
        state = {key: torch.empty_like(p, dtype=v.dtype).copy_(v) for key, v in values.items()}
        state |= {key: copy.deepcopy(own[key]) for key in own if key not in values}
        if state:
            found[name] = state
    if unknown and anew:
        warnings.warn(
            f"{len(anew)} parameters begin without the state of {optimizer}, of which no rule maps "
            f"{', '.join(unknown)}: {', '.join(anew[:3])}{', ...' if len(anew) > 3 else ''}",
            stacklevel=4,
        )
    return found


@torch.no_grad()
def _moved(
    conversion: Conversion, model: nn.Module, states: Mapping[str, State], key: str, kind: str
) -> dict[str, Tensor]:
    """The conversion applied to a copy of the model that holds an entry of the state in place of the parameters."""
    holder = copied(model)
    for name, p in plain_parameters(holder).items():
        value = states[name].get(key)
        p.zero_() if value is None else p.copy_(value)
    if kind == "map":
        result = conversion(holder)
    else:  # an opening whose detail changes has no such map, and gets another shape
        same = detail_of(model) == (conversion.detail or detail_of(model)) and not conversion.a_trous
        result = replace(conversion, steps=None, detail=None, a_trous=False).acting(holder, kind) if same else holder
        if conversion.steps is not None:
            result = Conversion(steps=conversion.steps)(result)
    return {name: p.detach() for name, p in plain_parameters(result).items()}


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by names that are the same for plain and reparametrised layers."""
    return {name.replace("parametrizations.weight.original", "weight"): p for name, p in model.named_parameters()}


def _is_like(value: Any, shape: torch.Size) -> bool:
    """Whether an entry of the state is a tensor with a number per weight; of a single weight it may be a counter."""
    return isinstance(value, Tensor) and value.shape == shape and value.dim() > 0


def _is_wide(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1


def check_rule(rule: str, name: str = "rule") -> None:
    """Raise ValueError for an unknown rule."""
    if rule not in RULES:
        raise ValueError(f"{name} must be one of {', '.join(RULES)}, got {rule!r}")
