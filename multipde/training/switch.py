"""The move from one level to the next: the conversion and its number of time steps."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from multipde.conversions.convert import Conversion, conversion
from multipde.conversions.sample_sizes import CALIBRATION_IMAGES
from multipde.evaluation.candidates import Evaluator
from multipde.networks.detail import keeps_function
from multipde.networks.model_spec import ModelSpec, spec_of
from multipde.stability.bounds import stable_steps, step_ratios
from multipde.training.level import Level
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings


def plan_move(
    net: nn.Module, level: Level, steps: tuple[int, ...], settings: TrainSettings, evaluator: Evaluator
) -> Conversion:
    """The conversion to a level by the method of the settings, with the planned time steps of each block.

    With ``auto_steps`` the bound on dt is measured on images before and after the conversion. A block whose dt exceeds
    its bound, and by a larger factor than before, gets up to twice as many steps over the same final time; if that does
    not suffice, its stencils are scaled down too.
    """
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
    first, detail = schedule.configs()[0], max(level.detail for level in schedule.levels)
    if detail > 1 and settings.momentum_rule == "dual":
        raise ValueError(f"momentum_rule must be map or reset for levels with a detail, got dual and detail {detail}")
    if detail > 1 and settings.coordinates == "finest":
        raise ValueError(f"coordinates must be level for levels with a detail, got finest and detail {detail}")
    if settings.auto_steps and (settings.coordinates == "finest" or not first.has_step_bounds):
        why = (
            f"{first.label} has no bound"
            if settings.coordinates == "level"
            else "the parameter stays on the finest mesh"
        )
        raise ValueError(f"steps must be given where {why}, got auto")


def stability_warning(net: nn.Module, evaluator: Evaluator) -> tuple[list[float], str]:
    """The ratio dt/bound of each block after a move, and a line of warning, which is empty if no bound is exceeded."""
    report = evaluator.step_bounds(net, spec_of(net).image_sizes[0])
    ratios = step_ratios(report)
    broken = [f"{r:.1f} times in block {k}" for k, r in enumerate(ratios) if r > 1]
    steps = ", ".join(str(n) for n in stable_steps(report))
    line = f"dt is above its bound along the data, {', '.join(broken)}; steps {steps} would meet it" if broken else ""
    return [round(r, 3) for r in ratios], line


def move_record(
    move: Conversion, old: ModelSpec, config: ModelSpec, accuracies: Sequence[float], ratios: Sequence[float]
) -> dict[str, Any]:
    """The record of a move from the network ``old`` to ``config``; sizes are those of the meshes.

    Args:
        accuracies: before the move, after it, and after BatchNorm was recalibrated.
        ratios: dt over its bound in each block.
    """
    method = "composing the opening" if keeps_function(old, config) else move.method
    exponents = move.calibration.exponents() if move.calibration else None
    return {
        "from": old.sizes[0],
        "to": config.sizes[0],
        "images": [old.image_sizes[0], config.image_sizes[0]],
        "method": "keeping the parameter" if move.keep_reference else method,
        "exponents": exponents and {k: round(e, 3) for k, e in exponents.items()},
        "steps": list(config.block_steps),
        "step_ratios": list(ratios),
        "block_scales": None if move.block_scales is None else list(move.block_scales),
    } | dict(zip(("accuracy_before", "accuracy_moved", "accuracy_recalibrated"), accuracies, strict=True))
