"""A conversion with enough time steps to keep the network as stable as before."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from multipde.conversions.convert import Conversion
from multipde.networks.model_spec import spec_of
from multipde.stability.bounds import stability_report, stable_steps, step_ratios

STABILITY_IMAGES = 8
"""Number of training images for which step bounds are measured."""

GROWTH = 2
"""Largest factor by which one conversion multiplies the number of steps; beyond it, stencils are scaled down."""

TOLERANCE = 0.01
"""Relative increase of dt/bound that is tolerated, so that few measurements suffice."""

ROUNDS = 10
"""Largest number of measurements while the scales are adapted."""


def stabilized(move: Conversion, net: nn.Module, before: Sequence[float], new_images: Tensor) -> Conversion:
    """The conversion with more time steps, and smaller stencils if needed, so that dt/bound does not grow in any block.

    Args:
        move: the conversion that was planned.
        net: the network before the conversion.
        before: dt/bound of each block of this network, see `step_ratios`; values below 1 count as 1.
        new_images: normalised images of the new size, along which the bounds are measured.
    """
    moved = move(net)
    present = spec_of(moved).block_steps
    wanted = stable_steps(stability_report(moved, new_images), before)
    move = replace(move, steps=tuple(min(w, GROWTH * n) for w, n in zip(wanted, present, strict=True)))
    config: Any = spec_of(net)
    power = 1.0 if config.norm == "tv" else 0.5  # |J| is proportional to |K| with the TV norm, to |K|² without it
    if config.dynamics == "second_order":
        power *= 2
    allowed, scales = [max(1.0, b) for b in before], [1.0] * len(before)
    for _ in range(ROUNDS):  # repeated, because scaling a block changes the input of the blocks behind it
        ratios = step_ratios(stability_report(move(net), new_images))
        if all(r <= (1 + TOLERANCE) * a for r, a in zip(ratios, allowed, strict=True)):
            break
        scales = [s * min(1.0, (a / r) ** power) for s, a, r in zip(scales, allowed, ratios, strict=True)]
        move = replace(move, block_scales=tuple(scales))
    return move
