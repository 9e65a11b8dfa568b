"""Conversion of an optimizer's state together with the network."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from multipde.conversions.convert import Conversion
from multipde.mesh.modes import copied

RULES = ("map", "dual", "reset")


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
    all. Second moments (as in Adam) do not transform linearly: the state of an optimizer that has them is kept for the
    parameters that the conversion does not change, and the others start without state.

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
    if rule == "reset":
        return
    old = {name: (p, old_optimizer.state.get(p, {})) for name, p in old_model.named_parameters()}
    only_momentum = all(set(state) <= set(LINEAR_STATE) for _, state in old.values())
    linear = [key for key in LINEAR_STATE if only_momentum and any(s.get(key) is not None for _, s in old.values())]
    move = conversion.dual if rule == "dual" else conversion
    moved = {key: _moved_state(move, old_model, old, key) for key in linear}
    held = {id(p) for group in new_optimizer.param_groups for p in group["params"]}
    for name, p in new_model.named_parameters():
        if id(p) not in held:
            continue
        if only_momentum:
            for key, values in moved.items():  # fused optimizers need the memory layout of the parameter
                new_optimizer.state[p][key] = torch.empty_like(p).copy_(values[name])
        elif name in old and old[name][1] and torch.equal(p.detach().cpu(), old[name][0].detach().cpu()):
            new_optimizer.state[p] = {
                key: torch.empty_like(p).copy_(v) if isinstance(v, Tensor) and v.shape == p.shape else copy.deepcopy(v)
                for key, v in old[name][1].items()
            }


@torch.no_grad()
def _moved_state(
    move: Callable[[nn.Module], nn.Module], model: nn.Module, old: dict[str, tuple[nn.Parameter, dict]], key: str
) -> dict[str, Tensor]:
    """The conversion applied to a copy of the model that holds the momentum in place of the parameters."""
    holder = copied(model)
    for name, p in holder.named_parameters():
        buffer = old[name][1].get(key)
        p.zero_() if buffer is None else p.copy_(buffer)
    return {name: p.detach() for name, p in move(holder).named_parameters()}


LINEAR_STATE = ("momentum_buffer", "exp_avg")
"""Entries of the state of torch's optimizers that are running means of gradients."""


def check_rule(rule: str, name: str = "rule") -> None:
    """Raise ValueError for an unknown rule."""
    if rule not in RULES:
        raise ValueError(f"{name} must be one of {', '.join(RULES)}, got {rule!r}")
