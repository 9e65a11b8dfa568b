"""One level of a schedule: its mesh, its number of epochs, its learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multipde.networks.model_spec import ModelSpec


def _one_cycle(fraction: float) -> float:
    """Linear from 1/10 to 1 over the first quarter, then half a cosine to zero."""
    if fraction < 0.25:
        return 0.1 + 0.9 * fraction / 0.25
    return 0.5 * (1 + math.cos(math.pi * (fraction - 0.25) / 0.75))


def _fifths(*ends: float) -> Callable[[float], float]:
    """Constant, and divided by five at each of these fractions."""
    return lambda fraction: 0.2 ** sum(fraction >= end for end in ends)


def _warm_up(fraction: float) -> float:
    """Linear from 1/10 to 1 over the first tenth, then constant."""
    return min(1.0, 0.1 + 9 * fraction)


POLICIES: dict[str, Callable[[float], float]] = {
    "one_cycle": _one_cycle,
    "piecewise": _fifths(0.6, 0.8),
    "piecewise_long": _fifths(0.3, 0.5, 0.7, 0.9),
    "across": _one_cycle,
    "warm_up": _warm_up,
    "constant": lambda fraction: 1.0,
    "cool_down": lambda fraction: 0.5 * (1 + math.cos(math.pi * fraction)),
}
"""Learning rate over its peak as a function of the share of the level that is done, in [0, 1); for ``across`` the share
of the work of all levels with this policy. ``piecewise`` is the paper's for STL-10 and CIFAR-10 (60, 20 and 20 per cent
of the epochs), ``piecewise_long`` its for CIFAR-100 (30, 20, 20, 20 and 10)."""


@dataclass(frozen=True)
class Level:
    """One level of a schedule: a mesh on which the network is trained for a number of epochs.

    Args:
        size: image side in pixels, at least 1.
        epochs: passes over the training images, positive, the last one in part where it is no integer; None to end
            the level when more work gains too little, within `TrainSettings.budget`.
        steps: time steps, one number or one per block; None keeps those of the previous level, or of the network.
        batch: images per optimizer step, of all processes together.
        learning_rate: peak of the learning rate, positive.
        policy: course of the learning rate: one cycle ``"across"`` all levels or ``"one_cycle"`` per level,
            ``"piecewise"``, ``"piecewise_long"``, ``"warm_up"``, ``"constant"`` or ``"cool_down"``.
        mixed: pairs of a size and its share of the batches, for batches whose size is drawn at random; the shares sum
            to 1 and the largest size is that of the level. Empty for batches of one size.

    Raises:
        ValueError: a value is outside its range.
    """

    size: int
    epochs: float | None
    steps: int | tuple[int, ...] | None = None
    batch: int = 125
    learning_rate: float = 0.1
    policy: str = "across"
    mixed: tuple[tuple[int, float], ...] = ()

    def __post_init__(self):
        if isinstance(self.steps, list):
            object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "mixed", tuple((int(size), float(share)) for size, share in self.mixed))
        for name in ("size", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
            if getattr(self, name) >= 2**31:
                raise ValueError(f"{name} must be below 2^31, got {getattr(self, name)}")
        if self.epochs is not None and not (math.isfinite(self.epochs) and self.epochs > 0):
            raise ValueError(f"epochs must be positive, got {self.epochs}")
        if self.mixed:
            sizes, shares = zip(*self.mixed, strict=True)
            if max(sizes) != self.size or len(set(sizes)) != len(sizes):
                raise ValueError(f"mixed must name each size once, the largest {self.size}, got {sizes}")
            if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
                raise ValueError(f"mixed must have positive shares that sum to 1, got {shares}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {self.policy!r}")

    @property
    def sizes(self) -> tuple[tuple[int, float], ...]:
        """The sizes of the batches, each with its share."""
        return self.mixed or ((self.size, 1.0),)

    @property
    def num_epochs(self) -> int:
        """Number of epochs, rounded up; 0 where it is not known beforehand."""
        return 0 if self.epochs is None else math.ceil(self.epochs - 1e-9)

    def share_of_epoch(self, epoch: int) -> float:
        """The share of the images that an epoch uses: 1, or less for the last epoch."""
        return 1.0 if self.epochs is None else min(1.0, self.epochs - epoch)


def level_flops(level: Level, config: "ModelSpec") -> float:
    """Floating point operations per image of a level, forward and backward pass together."""
    from multipde.networks.cost import count_flops  # here, for the command line shows the defaults without torch

    plain = [(replace(config, size=size, reference=None), share) for size, share in level.sizes]
    return sum(share * count_flops(network, training=True) for network, share in plain)


def steps_text(steps: int | tuple[int, ...] | None) -> str:
    """The numbers of time steps as text, a single one where all blocks have the same."""
    if not steps:
        return "-"
    blocks = (steps,) if isinstance(steps, int) else steps
    return ",".join(str(s) for s in (blocks[:1] if len(set(blocks)) == 1 else blocks))
