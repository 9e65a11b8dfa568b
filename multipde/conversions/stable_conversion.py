"""A conversion with as many time steps as keep the network as stable as it was."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from multipde.conversions.convert import Conversion
from multipde.networks.model_spec import spec_of
from multipde.stability.bounds import stability_report, stable_steps, step_ratios

STABILITY_IMAGES = 8
"""Training images along which step bounds are measured."""

GROWTH = 2
"""By how much the number of steps may grow at one switch; the scale of the stencils does the rest."""

TOLERANCE = 0.01
"""By what share of it a bound may be broken worse, so that few measurements suffice."""

ROUNDS = 10
"""Measurements after which the scales are taken as they are."""


def stabilized(move: Conversion, net: nn.Module, before: Sequence[float], new_images: Tensor) -> Conversion:
    """The conversion with more steps, and smaller stencils if that is not enough, so that no bound is broken worse.

    Args:
        before: dt over its bound in the blocks of the network, see `step_ratios`.
        new_images: as the converted network takes them.
    """
    moved = move(net)
    present = spec_of(moved).block_steps
    wanted = stable_steps(stability_report(moved, new_images), before)
    move = replace(move, steps=tuple(min(w, GROWTH * n) for w, n in zip(wanted, present, strict=True)))
    config: Any = spec_of(net)
    power = 1.0 if config.norm == "tv" else 0.5  # |J| grows with |K| behind the TV norm, with |K|² without
    if config.dynamics == "second_order":
        power *= 2
    allowed, scales = [max(1.0, b) for b in before], [1.0] * len(before)
    for _ in range(ROUNDS):  # a block sees other features when those before it are scaled
        ratios = step_ratios(stability_report(move(net), new_images))
        if all(r <= (1 + TOLERANCE) * a for r, a in zip(ratios, allowed, strict=True)):
            break
        scales = [s * min(1.0, (a / r) ** power) for s, a, r in zip(scales, allowed, ratios, strict=True)]
        move = replace(move, block_scales=tuple(scales))
    return move
