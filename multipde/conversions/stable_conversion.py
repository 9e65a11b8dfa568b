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


def stabilized(move: Conversion, net: nn.Module, before: Sequence[float], new_images: Tensor) -> Conversion:
    """The conversion with more steps, and smaller stencils if that is not enough, so that no bound is broken worse.

    Args:
        before: dt over its bound in the blocks of the network, see `step_ratios`.
        new_images: as the converted network takes them.
    """
    moved = move(net)
    present = spec_of(moved).block_steps
    wanted = stable_steps(stability_report(moved, new_images), before)
    steps = tuple(min(w, GROWTH * n) for w, n in zip(wanted, present, strict=True))
    move = replace(move, steps=steps)
    if steps == wanted:
        return move
    refined = move(net)
    after = step_ratios(stability_report(refined, new_images))
    config: Any = spec_of(net)
    power = 1.0 if config.norm == "tv" else 0.5  # |J| grows with |K| behind the TV norm, with |K|² without
    if config.dynamics == "second_order":
        power *= 2
    scales = tuple(
        1.0 if w == n else min(1.0, (max(1.0, b) / a) ** power)
        for w, n, a, b in zip(wanted, steps, after, before, strict=True)
    )
    return replace(move, block_scales=scales)
