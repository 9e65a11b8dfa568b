"""The budget of a training, in time, in floating point operations or in images."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

UNITS = {"min": ("seconds", 60.0), "h": ("seconds", 3600.0), "gflops": ("flops", 1e9), "tflops": ("flops", 1e12)}
IMAGE_UNITS = {"s": ("seconds", 1.0), "min": ("seconds", 60.0), "h": ("seconds", 3600.0), "images": ("images", 1.0)}
"""Units of a finish, see `FinishSettings`."""


@dataclass(frozen=True)
class Budget:
    """The largest cost of a training, in ``"seconds"``, ``"flops"`` or ``"images"``."""

    amount: float
    unit: str

    def __post_init__(self):
        if not (math.isfinite(self.amount) and self.amount > 0):
            raise ValueError(f"budget must be positive, got {self.amount:g} {self.unit}")
        if self.unit not in ("seconds", "flops", "images"):
            raise ValueError(f"unit must be seconds, flops or images, got {self.unit!r}")


def parse_budget(
    text: str, units: Mapping[str, tuple[str, float]] = UNITS, example: str = "min, h, GFLOPs or TFLOPs, such as 10min"
) -> Budget:
    """The budget in a text that a user types; ValueError for anything but a positive number with a unit.

    >>> parse_budget("10min")
    Budget(amount=600.0, unit='seconds')
    >>> parse_budget("40TFLOPs")
    Budget(amount=40000000000000.0, unit='flops')
    """
    found = re.fullmatch(r"\s*((?:[0-9]*\.)?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]+)\s*", text.lower())
    if not found or found[2] not in units:
        raise ValueError(f"budget must be a number with {example}, got {text!r}")
    unit, factor = units[found[2]]
    return Budget(float(found[1]) * factor, unit)
