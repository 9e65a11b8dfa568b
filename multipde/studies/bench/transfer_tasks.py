"""The trainings of ``multipde bench transfer``: which arm, recipe and seed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from multipde.networks.config import NetworkConfig
from multipde.runtime.table import Row
from multipde.studies.bench.equal_work import LEVEL_FIELDS, Budget, budget_text, checked_budget, levels_of_work
from multipde.studies.bench.transfer_arms import ALL, OWN, RECIPES, RIVALS
from multipde.studies.study import matching
from multipde.training.level import Level
from multipde.training.recipe import PLAIN


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
    def values(self) -> dict[str, Any]:
        """The fields of `TrainSettings` and `Level` of its recipe, and those of `TrainSettings` of its arm."""
        return {**PLAIN, **RECIPES.get(self.recipe, {}), **ALL[self.arm].settings}

    @property
    def settings(self) -> dict[str, Any]:
        """Its fields of `TrainSettings`, apart from the device."""
        return {key: value for key, value in self.values.items() if key not in LEVEL_FIELDS} | {"seed": self.seed}

    def network(self, base: NetworkConfig, images: Any = None) -> Any:
        """The network of the arm at the full size; ``base`` unless it has another one, see `Arm`."""
        make = ALL[self.arm].network
        return base if make is None else make(size=base.sizes[0], classes=base.classes, images=images)

    def levels(self, base: NetworkConfig, num_images: int = 0) -> list[Level]:
        """The levels, whose work equals the budget, for a network and a number of training images."""
        return levels_of_work(ALL[self.arm], self.network(base), base, self.budget, num_images, self.values)


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
        Task(arm, name, own[name], seed, OWN if ALL[arm].own_recipe else recipe)
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
