"""The optimizer's state on its way with the network to another mesh."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from multipde.conversions.convert import Conversion

RULES = ("map", "dual", "reset")


def carry_optimizer_state(
    conversion: Conversion,
    old_model: nn.Module,
    old_optimizer: torch.optim.Optimizer,
    new_model: nn.Module,
    new_optimizer: torch.optim.Optimizer,
    rule: str = "map",
) -> None:
    """Move an optimizer's state with the network, by parameter name.

    Momentum moves by the linear map of the parameters themselves, v' = M v: then (p - lr v)' = p' - lr v'. The rivals
    are v' = M⁻ᵀ v, by which gradients move, and starting anew. An optimizer that keeps more than momentum (second
    moments, which are no linear quantity) is carried for the parameters that the conversion leaves as they are; the
    others start anew.

    Args:
        new_model: what ``conversion(old_model)`` gave.
        new_optimizer: a fresh optimizer of the same kind over the parameters of the new model.
        rule: ``"map"`` for M, ``"dual"`` for M⁻ᵀ (the number of steps must stay), ``"reset"`` for nothing.

    Raises:
        ValueError: an unknown rule.
    """
    check_rule(rule)
    if rule == "reset":
        return
    old = {name: (p, old_optimizer.state.get(p, {})) for name, p in old_model.named_parameters()}
    only_momentum = all(set(state) <= set(LINEAR_STATE) for _, state in old.values())
    linear = [key for key in LINEAR_STATE if only_momentum and _has(old, key)]
    moved = {
        key: _moved_state(conversion.dual if rule == "dual" else conversion, old_model, old, key) for key in linear
    }
    held = {id(p) for group in new_optimizer.param_groups for p in group["params"]}
    for name, p in new_model.named_parameters():
        if id(p) not in held:
            continue
        if only_momentum:
            for key, values in moved.items():  # fused optimizers need the layout of the parameter
                new_optimizer.state[p][key] = torch.empty_like(p).copy_(values[name])
        elif name in old and old[name][1] and torch.equal(p.detach().cpu(), old[name][0].detach().cpu()):
            new_optimizer.state[p] = {
                key: torch.empty_like(p).copy_(v) if isinstance(v, Tensor) and v.shape == p.shape else copy.deepcopy(v)
                for key, v in old[name][1].items()
            }


def _has(old: dict[str, tuple[nn.Parameter, dict]], key: str) -> bool:
    return any(state.get(key) is not None for _, state in old.values())


@torch.no_grad()
def _moved_state(
    move: Callable[[nn.Module], nn.Module], model: nn.Module, old: dict[str, tuple[nn.Parameter, dict]], key: str
) -> dict[str, Tensor]:
    """The conversion applied to a copy of the model that holds the momentum in place of the parameters."""
    holder = copy.deepcopy(model)
    for name, p in holder.named_parameters():
        buffer = old[name][1].get(key)
        p.zero_() if buffer is None else p.copy_(buffer)
    return {name: p.detach() for name, p in move(holder).named_parameters()}


LINEAR_STATE = ("momentum_buffer", "exp_avg")
"""State of torch's optimizers that is a running mean of gradients."""


def check_rule(rule: str, name: str = "rule") -> None:
    """Raise ValueError for a rule that there is not."""
    if rule not in RULES:
        raise ValueError(f"{name} must be one of {', '.join(RULES)}, got {rule!r}")
