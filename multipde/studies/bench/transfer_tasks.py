"""The trainings of ``multipde bench transfer``: which arm, recipe and seed, and levels for equal work."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, NamedTuple

from multipde.networks.config import NetworkConfig
from multipde.runtime.table import Row
from multipde.studies.bench.transfer_arms import OWN, RECIPES, RIVALS, arm_of
from multipde.studies.study import matching
from multipde.training.budget import parse_budget
from multipde.training.level import Level, level_flops
from multipde.training.optimizers import planned_flops
from multipde.training.schedule import Schedule

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


class Task(NamedTuple):
    """One training of the study; ``budget`` is its work, see `Budget`."""

    arm: str
    dynamics: str = "hamiltonian"
    budget: Budget = 2.0
    seed: int = 0
    recipe: str = "sgd"

    @property
    def name(self) -> str:
        """The name of its run directory."""
        recipe = "" if self.recipe in ("sgd", OWN) else f"-{self.recipe}"
        name = f"{self.arm}-{self.dynamics}-{budget_text(self.budget)}-{self.seed}{recipe}"
        return name.replace(" ", "-")

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of `TrainSettings` of its recipe and its arm."""
        recipe = {key: value for key, value in RECIPES.get(self.recipe, {}).items() if key not in LEVEL_FIELDS}
        return {**recipe, **arm_of(self.arm).settings, "seed": self.seed}

    def network(self, base: NetworkConfig, images: Any = None) -> Any:
        """The network of the arm at the full size; ``base`` unless it has another one, see `Arm`."""
        make = arm_of(self.arm).network
        return base if make is None else make(size=base.sizes[0], classes=base.classes, images=images)

    def levels(self, base: NetworkConfig, num_images: int = 0) -> list[Level]:
        """The levels, whose work equals the budget.

        Args:
            base: the network of the dynamics at the full size, in whose epochs the budget is counted.
            num_images: number of training images, needed for a budget in FLOPs.
        """
        arm, size, network = arm_of(self.arm), base.sizes[0], self.network(base)
        recipe = {key: value for key, value in RECIPES.get(self.recipe, {}).items() if key in LEVEL_FIELDS}
        steps = arm.steps or (None,) * len(arm.parts)
        levels = [
            Level(
                round(part.size * size),
                1,
                n,
                detail=part.detail,
                crop=None if part.crop == 1 else round(part.crop * size),
                **{**recipe, **arm.level},
            )
            for part, n in zip(arm.parts, steps, strict=True)
        ]
        if isinstance(self.budget, str):
            budget = parse_budget(self.budget).amount / num_images
            units = [max(1, num_images // level.batch) for level in levels]
        else:
            budget, units = self.budget * level_flops(Level(size, 1), base), [EPOCH_PARTS] * len(levels)
        step_flops = _planned_flops(network, str(self.settings.get("optimizer", "sgd")))
        shares = [part.share for part in arm.parts]
        levels = Schedule(levels, network).of_work(shares, budget, units, step_flops).levels
        if not arm.mixed:
            return list(levels)
        epochs = [level.epochs or 0 for level in levels]
        total = sum(epochs)
        mixed = tuple((level.size, e / total) for level, e in zip(levels, epochs, strict=True))
        return [replace(levels[-1], epochs=total, mixed=mixed)]


_planned_flops = lru_cache(maxsize=64)(planned_flops)


def budget_text(budget: Budget) -> str:
    """The budget as it stands in the name of a run directory."""
    return budget if isinstance(budget, str) else f"{budget:g}"


def work_text(budget: Budget) -> str:
    """The budget for people."""
    return budget if isinstance(budget, str) else f"{budget:g} epochs of work"


def tasks_of(
    arms: Sequence[str],
    dynamics: Sequence[str],
    budget: Budget,
    seeds: Sequence[int],
    recipes: Sequence[str] = ("sgd",),
) -> list[Task]:
    """The tasks of all combinations.

    Dynamics other than hamiltonian have half the epochs. Rivals are other networks, trained for the first dynamics
    only; arms with a recipe of their own are trained once.
    """
    is_epochs = not isinstance(budget, str)
    own = {name: checked_budget(budget, 0.5 if is_epochs and name != "hamiltonian" else 1.0) for name in dynamics}
    found = [
        Task(arm, name, own[name], seed, OWN if arm_of(arm).own_recipe else recipe)
        for seed in seeds
        for name in dynamics
        for recipe in recipes
        for arm in arms
        if arm not in RIVALS or name == dynamics[0]
    ]
    return list(dict.fromkeys(found))


def finalists(rows: Sequence[Row], budget: Budget = 2.0, seed: int = 0, recipe: str = "sgd", num: int = 2) -> list[str]:
    """The arms fine only, copy, and the ``num`` most accurate others on the Hamiltonian network."""
    found = matching(rows, dynamics="hamiltonian", budget=budget, seed=seed, recipe=recipe)
    others = [row for row in found if row["arm"] not in ("fine only", "copy", *RIVALS)]
    return ["fine only", "copy", *(r["arm"] for r in sorted(others, key=lambda r: -r["test_accuracy"])[:num])]
