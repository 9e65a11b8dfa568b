"""Levels of an arm that cost a budget, which is given in epochs at the full size or in FLOPs."""

import math
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

from multipde.networks.config import NetworkConfig
from multipde.studies.bench.transfer_arms import Arm
from multipde.training.budget import parse_budget
from multipde.training.level import Level
from multipde.training.optimizers import planned_flops
from multipde.training.schedule import Schedule, level_flops, mixed_level

EPOCH_PARTS = 20
"""With a budget in epochs, numbers of epochs are multiples of a twentieth; otherwise they are whole batches."""

LEVEL_FIELDS = tuple(f.name for f in fields(Level))

Budget = float | str
"""Epochs at the full size, or text such as ``30TFLOPs``."""


def checked_budget(budget: Budget, factor: float = 1.0) -> Budget:
    """A budget times a factor, as rows have it; ValueError for what is neither a positive number nor in FLOPs."""
    try:
        epochs = float(budget)
    except ValueError:
        found = parse_budget(str(budget))
        if found.unit != "flops":
            raise ValueError(f"budget must be a number of epochs or in FLOPs such as 30TFLOPs, got {budget}") from None
        return f"{factor * found.amount / 1e12:g}TFLOPs"
    if not (math.isfinite(epochs) and epochs > 0):
        raise ValueError(f"budget must be positive, got {budget}")
    return factor * epochs


def budget_text(budget: Budget) -> str:
    """The budget as it stands in the name of a run directory."""
    return budget if isinstance(budget, str) else f"{budget:g}"


def work_text(budget: Budget) -> str:
    """The budget for people."""
    return budget if isinstance(budget, str) else f"{budget:g} epoch{'s' * (budget != 1)} of work"


def levels_of_work(
    arm: Arm, network: Any, base: NetworkConfig, budget: Budget, num_images: int, recipe: Mapping[str, Any]
) -> list[Level]:
    """The levels of an arm, whose work equals the budget, that of the optimizer included.

    Args:
        network: the network of the arm at the full size.
        base: the network in whose epochs at the full size a budget is counted.
        num_images: number of training images, by which a budget in FLOPs is divided.
        recipe: fields of `Level` that the arm may change, and of `TrainSettings`, of which the optimizer counts.
    """
    own, size = {key: value for key, value in recipe.items() if key in LEVEL_FIELDS}, base.sizes[0]
    levels = []
    for part, steps in zip(arm.parts, arm.steps or (None,) * len(arm.parts), strict=True):
        crop = None if part.crop == 1 else round(part.crop * size)
        own |= {"steps": steps, "detail": part.detail, "crop": crop, "a_trous": part.a_trous}
        levels.append(Level(round(part.size * size), 1, **{**own, **arm.level}))
    if isinstance(budget, str):
        per_image = parse_budget(budget).amount / num_images
        units = [max(1, num_images // level.batch) for level in levels]
    else:
        per_image, units = budget * level_flops(Level(size, 1), base), [EPOCH_PARTS] * len(levels)
    step_flops = _planned_flops(network, str(recipe.get("optimizer", "sgd")))
    shares = [part.share for part in arm.parts]
    levels = Schedule(levels, network).of_work(shares, per_image, units, step_flops).levels
    return [mixed_level(levels)] if arm.mixed else list(levels)


_planned_flops = lru_cache(maxsize=64)(planned_flops)
