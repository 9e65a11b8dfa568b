"""The arms of ``multipde bench transfer``: ways to train from coarse to fine, and their levels for equal work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from multipde.networks.config import NetworkConfig
from multipde.runtime.table import Row
from multipde.studies.study import matching
from multipde.training.level import Level, level_flops
from multipde.training.schedule import Schedule


@dataclass(frozen=True)
class Arm:
    """One way to train from coarse to fine.

    Args:
        sizes: pairs of a size, as a fraction of the full size, and its share of the work.
        settings: the fields of `TrainSettings` that this arm changes.
        mixed: use batches of all sizes in random order, instead of one size after the other.
        policy: policy of the learning rate, see `Level`.
        steps: number of time steps at each size; None for that of the network.
    """

    sizes: tuple[tuple[float, float], ...] = ((1 / 4, 0.125), (1 / 2, 0.375), (1, 0.5))
    settings: Mapping[str, Any] = field(default_factory=dict)
    mixed: bool = False
    policy: str = "across"
    steps: tuple[int, ...] | None = None


GRADUAL = ((1 / 4, 0.06), (3 / 8, 0.07), (1 / 2, 0.19), (5 / 8, 0.15), (3 / 4, 0.14), (7 / 8, 0.15), (1, 0.24))

ARMS = {
    "fine only": Arm(((1, 1.0),), {"transfer": "copy"}),
    "copy": Arm(settings={"transfer": "copy"}),
    "rediscretize": Arm(settings={"transfer": "rediscretize"}),
    "galerkin": Arm(settings={"transfer": "galerkin"}),
    "calibrated": Arm(settings={"transfer": "calibrated"}),
    "mesh-invariant": Arm(settings={"transfer": "copy", "coordinates": "finest", "conditioning": 1.0}),
    "mixed": Arm(settings={"transfer": "copy"}, mixed=True),
    "gradual": Arm(GRADUAL, {"transfer": "calibrated"}),
    "gradual copy": Arm(GRADUAL, {"transfer": "copy"}),
}
"""The arms of the study; the learning rate goes through one cycle across all levels, measured in work."""

IDEAS = {
    "one cycle per level": Arm(settings={"transfer": "copy"}, policy="one_cycle"),
    "twice the steps": Arm(settings={"transfer": "copy"}, steps=(3, 3, 6)),
    "momentum reset": Arm(settings={"transfer": "copy", "momentum_rule": "reset"}),
    "momentum dual": Arm(settings={"transfer": "calibrated", "momentum_rule": "dual"}),
    "calibrated full": Arm(settings={"transfer": "calibrated_full"}),
    "mesh-invariant, q = 0": Arm(settings={"transfer": "copy", "coordinates": "finest", "conditioning": 0.0}),
    "mesh-invariant, q = 1/2": Arm(settings={"transfer": "copy", "coordinates": "finest", "conditioning": 0.5}),
    "rediscretize, steps auto": Arm(settings={"transfer": "rediscretize", "auto_steps": True}),
}
"""Further arms, trained on request only. The last one exceeds its budget where it takes more steps."""


def arm_of(name: str) -> Arm:
    """The arm of this name in `ARMS` or `IDEAS`."""
    if name not in (known := ARMS | IDEAS):
        raise ValueError(f"arms must be among {', '.join(known)}, got {name!r}")
    return known[name]


EPOCH_PARTS = 20
"""Numbers of epochs are multiples of a twentieth."""


class Task(NamedTuple):
    """One training of the study; ``budget`` is its work in epochs at the full size."""

    arm: str
    dynamics: str = "hamiltonian"
    budget: float = 2.0
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of its run directory."""
        return f"{self.arm}-{self.dynamics}-{self.budget:g}-{self.seed}".replace(" ", "-")

    def levels(self, network: NetworkConfig) -> list[Level]:
        """The levels, whose work equals the budget, for a network that is given at the full size."""
        arm, size = arm_of(self.arm), network.sizes[0]
        steps = arm.steps or (None,) * len(arm.sizes)
        shares, budget = [share for _, share in arm.sizes], self.budget * level_flops(Level(size, 1), network)
        levels = [Level(round(p * size), 1, n, policy=arm.policy) for (p, _), n in zip(arm.sizes, steps, strict=True)]
        levels = Schedule(levels, network).of_work(shares, budget, [EPOCH_PARTS] * len(levels)).levels
        if not arm.mixed:
            return list(levels)
        total = sum(level.epochs or 0 for level in levels)
        mixed = tuple((level.size, (level.epochs or 0) / total) for level in levels)
        return [Level(size, total, policy="across", mixed=mixed)]


def tasks_of(arms: Sequence[str], dynamics: Sequence[str], budget: float, seeds: Sequence[int]) -> list[Task]:
    """The tasks of all combinations; dynamics other than hamiltonian have half the budget."""
    own = {name: budget if name == "hamiltonian" else budget / 2 for name in dynamics}
    return [Task(arm, name, own[name], seed) for seed in seeds for name in dynamics for arm in arms]


def finalists(rows: Sequence[Row], budget: float = 2.0, seed: int = 0, num: int = 2) -> list[str]:
    """The arms fine only, copy, and the ``num`` most accurate others on the Hamiltonian network."""
    found = matching(rows, dynamics="hamiltonian", budget=budget, seed=seed)
    others = [row for row in found if row["arm"] not in ("fine only", "copy")]
    return ["fine only", "copy", *(r["arm"] for r in sorted(others, key=lambda r: -r["test_accuracy"])[:num])]
