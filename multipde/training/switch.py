"""The move from one level to the next: the conversion and its number of time steps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from multipde.conversions.convert import Conversion, conversion
from multipde.conversions.sample_sizes import CALIBRATION_IMAGES
from multipde.evaluation.candidates import Evaluator
from multipde.evaluation.metrics import Metrics
from multipde.networks.detail import keeps_function
from multipde.networks.model_spec import ModelSpec, spec_of
from multipde.runtime.processes import num_processes
from multipde.stability.bounds import StepStability, stable_steps, step_ratios
from multipde.training.level import Level
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings

COMPOSING = "composing the opening"
"""The method of a move that only raises the detail."""
WHEN = ("before", "moved", "recalibrated")
"""When the network is measured: before the move, after it, and after BatchNorm was recalibrated."""


def plan_move(
    net: nn.Module, level: Level, steps: tuple[int, ...], settings: TrainSettings, evaluator: Evaluator
) -> Conversion:
    """The conversion to a level by the method of the settings, with the planned time steps of each block.

    With ``auto_steps`` the bound on dt is measured on images before and after the conversion. A block whose dt exceeds
    its bound, and by a larger factor than before, gets up to twice as many steps over the same final time; if that does
    not suffice, its stencils are scaled down too.
    """
    if level.a_trous is not None:
        return Conversion(steps=steps or None, a_trous=True)
    if settings.coordinates == "finest":
        return replace(conversion(net, size=level.size, steps=steps or None), keep_reference=True)
    wanted, num = "auto" if settings.auto_steps else steps or None, min(CALIBRATION_IMAGES, settings.calibration_images)
    old_size = spec_of(net).image_sizes[0]
    return evaluator.plan(net, old_size, level.image_size, settings.transfer, wanted, num, level.detail)


def check_moves(schedule: Schedule, settings: TrainSettings) -> None:
    """Raise ValueError, before anything is trained, for settings that cannot be applied at a move between levels."""
    steps = {config.block_steps for config in schedule.configs()}
    if settings.momentum_rule == "dual" and (settings.auto_steps or len(steps) > 1):
        raise ValueError("momentum_rule must be map or reset where the number of steps changes, got dual")
    if settings.thaw is not None and settings.thaw > len(schedule.levels):
        raise ValueError(f"thaw must be the number of a level, 2 to {len(schedule.levels)}, got {settings.thaw}")
    own = min(level.batch for level in schedule.levels) // num_processes()
    if settings.accumulate > own:
        raise ValueError(f"accumulate must be at most {own}, the images of a batch, got {settings.accumulate}")
    first, detail = schedule.configs()[0], max(level.detail for level in schedule.levels)
    if detail > 1 and settings.momentum_rule == "dual":
        raise ValueError(f"momentum_rule must be map or reset for levels with a detail, got dual and detail {detail}")
    if detail > 1 and settings.coordinates == "finest":
        raise ValueError(f"coordinates must be level for levels with a detail, got finest and detail {detail}")
    if settings.coordinates == "finest" and any(level.crop for level in schedule.levels):
        raise ValueError("coordinates must be level for levels with a crop, got finest")
    if settings.auto_steps and (settings.coordinates == "finest" or not first.has_step_bounds):
        why = (
            f"{first.label} has no bound"
            if settings.coordinates == "level"
            else "the parameter stays on the finest mesh"
        )
        raise ValueError(f"steps must be given where {why}, got auto")


def move_record(
    move: Conversion, old: ModelSpec, config: ModelSpec, measured: Sequence[Metrics], report: Sequence[StepStability]
) -> dict[str, Any]:
    """The record of a move from the network ``old`` to ``config``; sizes are those of the meshes.

    Args:
        measured: on the same validation images, see `WHEN`.
        report: dt beside its bounds after the move; the record has the largest ratio in each block, and the numbers of
            steps that would meet the bounds.
    """
    method = COMPOSING if keeps_function(old, config) else "a trous" if move.a_trous else move.method
    exponents = move.calibration.exponents() if move.calibration else None
    values = {f"accuracy_{when}": m.accuracy for when, m in zip(WHEN, measured, strict=True)}
    values |= {f"metric_{when}": m.metric for when, m in zip(WHEN, measured, strict=True) if m.metric is not None}
    return {
        "from": old.sizes[0],
        "to": config.sizes[0],
        "images": [old.image_sizes[0], config.image_sizes[0]],
        "method": "keeping the parameter" if move.keep_reference else method,
        "exponents": exponents and {k: round(e, 3) for k, e in exponents.items()},
        "steps": list(config.block_steps),
        "step_ratios": [round(ratio, 3) for ratio in step_ratios(report)],
        "stable_steps": list(stable_steps(report)),
        "block_scales": None if move.block_scales is None else list(move.block_scales),
    } | values


def move_line(old: Level, level: Level, move: Mapping[str, Any]) -> str:
    """The record of a move as a line on the screen; of one that changes no answer, only the accuracy before it."""
    if move["method"] == COMPOSING:
        accuracy = f"{_value(move, 'before')} before and after"
        return f"move {old.label} -> {level.label} by {COMPOSING}: validation {accuracy}, since no answer changes"
    values = ", ".join(
        f"{_value(move, when)} {name}" for when, name in zip(WHEN, ("before", "after", "with BatchNorm"), strict=True)
    )
    return f"move {old.label} -> {level.label} by {move['method']}: validation {values} recalibrated"


def _value(move: Mapping[str, Any], when: str) -> str:
    metric = move.get(f"metric_{when}")
    return f"{move[f'accuracy_{when}']:.1%}" + ("" if metric is None else f" (metric {metric:.4g})")
