"""The move from one level to the next: by which map, and with how many time steps."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from multipde.conversions.convert import Conversion, conversion
from multipde.conversions.sample_sizes import CALIBRATION_IMAGES
from multipde.evaluation.candidates import Evaluator
from multipde.networks.model_spec import ModelSpec, spec_of
from multipde.stability.bounds import stable_steps, step_ratios
from multipde.training.level import Level
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings


def plan_move(
    net: nn.Module, level: Level, steps: tuple[int, ...], settings: TrainSettings, evaluator: Evaluator
) -> Conversion:
    """The conversion to a level: by the settings' method, calibrated on images if need be, stable if asked for.

    With ``auto_steps`` the bound on dt is measured along images in the old network on its mesh and in the converted one
    on the new mesh. Where dt exceeds its bound by more than before, and exceeds it at all, the block gets more steps
    over the same final time, at most twice as many; what then is missing is made up by scaling its stencils down.

    Args:
        steps: planned time steps of each block.
        evaluator: has the training images on which is measured.
    """
    if settings.coordinates == "finest":
        return replace(conversion(net, size=level.size, steps=steps or None), keep_reference=True)
    wanted, num = "auto" if settings.auto_steps else steps or None, min(CALIBRATION_IMAGES, settings.calibration_images)
    return evaluator.plan(net, spec_of(net).sizes[0], level.size, settings.transfer, wanted, num)


def check_moves(schedule: Schedule, settings: TrainSettings) -> None:
    """Raise ValueError for settings that could not be followed at a switch, before anything is trained."""
    steps = {config.block_steps for config in schedule.configs()}
    if settings.momentum_rule == "dual" and (settings.auto_steps or len(steps) > 1):
        raise ValueError("momentum_rule must be map or reset where the number of steps changes, got dual")
    first = schedule.configs()[0]
    if settings.auto_steps and (settings.coordinates == "finest" or not first.has_step_bounds):
        is_finest = settings.coordinates == "finest"
        why = "the parameter stays on the finest mesh" if is_finest else f"{first.label} has no bound"
        raise ValueError(f"steps must be given where {why}, got auto")


def stability_warning(net: nn.Module, evaluator: Evaluator) -> tuple[list[float], str]:
    """dt over its bound along the data in each block of a network that has come to a new mesh, and a line about it.

    Returns:
        The ratios, empty for a network without bounds, and the line, empty where all bounds are kept.
    """
    report = evaluator.step_bounds(net, spec_of(net).sizes[0])
    ratios = step_ratios(report)
    broken = [f"{r:.1f} times in block {k}" for k, r in enumerate(ratios) if r > 1]
    steps = ", ".join(str(n) for n in stable_steps(report))
    line = f"dt is above its bound along the data, {', '.join(broken)}; steps {steps} would mend it" if broken else ""
    return [round(r, 3) for r in ratios], line


def move_record(
    move: Conversion, old_size: int, config: ModelSpec, accuracies: Sequence[float], ratios: Sequence[float]
) -> dict[str, Any]:
    """What is written down about a move.

    Args:
        config: of the moved network.
        accuracies: before, after, and after BatchNorm was measured anew.
        ratios: dt over its bound.
    """
    exponents = move.calibration.exponents() if move.calibration else None
    return {
        "from": old_size,
        "to": config.sizes[0],
        "method": "keeping the parameter" if move.keep_reference else move.method,
        "exponents": exponents and {k: round(e, 3) for k, e in exponents.items()},
        "steps": list(config.block_steps),
        "step_ratios": list(ratios),
        "block_scales": None if move.block_scales is None else list(move.block_scales),
    } | dict(zip(("accuracy_before", "accuracy_moved", "accuracy_recalibrated"), accuracies, strict=True))
