"""What an optimizer of the user's keeps in its parameter groups while it trains, such as a number of steps."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

GIVEN = ("params", "lr", "initial_lr", "rate_factor")
"""Entries of a group that are set from outside."""

PREFIX, ENTRY = ":group:", re.compile(r":group:(\d{1,6}):(.+)")
"""The names of such entries in a checkpoint; that of a parameter has no colon."""


class GroupState:
    """The entries of the parameter groups that have changed since the optimizer was made, as tensors by name.

    Optimizers without a schedule (Defazio et al., 2024) and those that estimate their learning rate (Mishchenko &
    Defazio, 2023) keep a part of their state there.
    """

    def __init__(self, optimizer: Any):
        self.groups = optimizer.param_groups
        self.first = [{key: _copied(value) for key, value in _own(group).items()} for group in self.groups]

    def changed(self) -> dict[str, Tensor]:
        """The entries that have changed, by ``:group:NUMBER:KEY``; ValueError for other things than numbers."""
        found = {}
        for i, (group, first) in enumerate(zip(self.groups, self.first, strict=False)):
            for key, value in _own(group).items():
                if key in first and _same(value, first[key]):
                    continue
                is_one = isinstance(value, Tensor) and value.numel() == 1
                if not (is_one or isinstance(value, (bool, int, float))):
                    got = f"{type(value).__name__} {key!r}"
                    raise ValueError(f"optimizer must keep single numbers in its parameter groups, got {got}")
                dtype = torch.float64 if isinstance(value, float) else None
                found[f"{PREFIX}{i}:{key}"] = torch.as_tensor(value, dtype=dtype).detach().cpu()
        return found

    def set(self, state: Mapping[str, Tensor]) -> None:
        """Set entries to those that `changed` returned."""
        for name, value in state.items():
            if (found := ENTRY.fullmatch(name)) and int(found[1]) < len(self.groups):
                group, key = self.groups[int(found[1])], found[2]
                is_tensor = isinstance(group.get(key), Tensor)
                group[key] = value.clone().to(group[key]) if is_tensor else value.item()

    def go_on(self, old: "GroupState") -> None:
        """Set the numbers to those of the optimizer of the level before, where its groups are as many."""
        if len(old.groups) == len(self.groups):
            self.set(old.changed())


def is_group_entry(name: str) -> bool:
    """Whether a tensor of a checkpoint is an entry of a parameter group."""
    return name.startswith(PREFIX)


def _own(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in GIVEN}


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _same(value: Any, first: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(first, Tensor):
        return torch.equal(value.detach(), first.to(value))
    return value is first or (type(value) is type(first) and not isinstance(value, Tensor) and bool(value == first))
