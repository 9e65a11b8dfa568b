"""The move from one level to the next: by which map, and with how many time steps."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from multipde.mesh.transfer import CALIBRATED
from multipde.networks.config import NetworkConfig
from multipde.networks.convert import Conversion, conversion
from multipde.networks.network import PDENet
from multipde.networks.stability import stability_report, stable_steps, step_ratios
from multipde.training.schedule import Level, Schedule
from multipde.training.settings import TrainSettings

CALIBRATION_IMAGES = 256
"""Training images on which derivative terms are measured; all of them go through the network at once."""

STABILITY_IMAGES = 8
"""Training images along which step bounds are measured."""

GROWTH = 2
"""By how much the number of steps may grow at one switch; the scale of the stencils does the rest."""

DrawImages = Callable[[int, int], Tensor]
"""(number, size) to training images as the network takes them."""


def plan_move(
    net: PDENet, level: Level, steps: tuple[int, ...], settings: TrainSettings, draw: DrawImages
) -> Conversion:
    """The conversion to a level: by the settings' method, calibrated on images if need be, stable if asked for.

    With ``auto_steps`` the bound on dt is measured along images in the old network on its mesh and in the converted one
    on the new mesh. Where dt exceeds its bound by more than before, and exceeds it at all, the block gets more steps
    over the same final time, at most twice as many; what then is missing is made up by scaling its stencils down.

    Args:
        steps: planned time steps of each block.
        draw: training images.
    """
    old_size = net.config.sizes[0]
    if settings.coordinates == "finest":
        return replace(conversion(net, size=level.size, steps=steps), keep_reference=True)
    calibrated = settings.transfer in CALIBRATED and level.size != old_size
    images = (
        draw(min(CALIBRATION_IMAGES, settings.calibration_images), max(level.size, old_size)) if calibrated else None
    )
    method = settings.transfer if calibrated or settings.transfer not in CALIBRATED else "copy"
    move = conversion(net, size=level.size, method=method, calibration=images)
    if settings.auto_steps:
        before = step_ratios(stability_report(net, draw(STABILITY_IMAGES, old_size)))
        return stabilised(move, net, before, draw(STABILITY_IMAGES, level.size))
    return replace(move, steps=steps)


def check_moves(schedule: Schedule, settings: TrainSettings) -> None:
    """Raise ValueError for settings that could not be followed at a switch, before anything is trained."""
    steps = {config.block_steps for config in schedule.configs()}
    if settings.momentum_rule == "dual" and (settings.auto_steps or len(steps) > 1):
        raise ValueError("momentum_rule must be map or reset where the number of steps changes, got dual")
    if settings.auto_steps and (settings.coordinates == "finest" or schedule.configs()[0].dynamics == "resnet"):
        why = "the parameter stays on the finest mesh" if settings.coordinates == "finest" else "resnet has no bound"
        raise ValueError(f"steps must be given where {why}, got auto")


def stability_warning(net: PDENet, draw: DrawImages) -> tuple[list[float], str]:
    """dt over its bound along the data in each block of a network that has come to a new mesh, and a line about it.

    Returns:
        The ratios, empty for a dynamics without bound, and the line, empty where all bounds are kept.
    """
    if net.config.dynamics == "resnet":
        return [], ""
    report = stability_report(net, draw(STABILITY_IMAGES, net.config.sizes[0]))
    ratios = step_ratios(report)
    broken = [f"{r:.1f} times in block {k}" for k, r in enumerate(ratios) if r > 1]
    steps = ", ".join(str(n) for n in stable_steps(report))
    line = f"dt is above its bound along the data, {', '.join(broken)}; steps {steps} would mend it" if broken else ""
    return [round(r, 3) for r in ratios], line


def move_record(
    move: Conversion, old_size: int, config: NetworkConfig, accuracies: Sequence[float], ratios: Sequence[float]
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


def stabilised(move: Conversion, net: PDENet, before: Sequence[float], new_images: Tensor) -> Conversion:
    """The conversion with more steps, and smaller stencils if that is not enough, so that no bound is broken worse.

    Args:
        before: dt over its bound in the blocks of the network, see `step_ratios`.
        new_images: as the converted network takes them.
    """
    moved: PDENet = move(net)  # pyright: ignore[reportAssignmentType]
    present = moved.config.block_steps
    wanted = stable_steps(stability_report(moved, new_images), before)
    steps = tuple(min(w, GROWTH * n) for w, n in zip(wanted, present, strict=True))
    move = replace(move, steps=steps)
    if steps == wanted:
        return move
    refined: PDENet = move(net)  # pyright: ignore[reportAssignmentType]
    after = step_ratios(stability_report(refined, new_images))
    power = 1.0 if net.config.norm == "tv" else 0.5  # |J| grows with |K| behind the TV norm, with |K|² without
    if net.config.dynamics == "second_order":
        power *= 2
    scales = tuple(
        1.0 if w == n else min(1.0, (max(1.0, b) / a) ** power)
        for w, n, a, b in zip(wanted, steps, after, before, strict=True)
    )
    return replace(move, block_scales=scales)
