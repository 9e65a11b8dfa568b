"""What an experiment of the paper costs, in work and in minutes on this machine, before it begins."""

import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from multipde.networks.config import NetworkConfig
from multipde.networks.network import PDENet
from multipde.runtime.device import Compute
from multipde.storage.run_directory import RESULT
from multipde.studies.bench.timing import alternated, random_images, step_of
from multipde.studies.paper.recipes import BATCH, RECIPES, PaperBudget, Training
from multipde.training.level import Level
from multipde.training.schedule import level_flops

COLUMNS = """name: {name} | sizes: {sizes} | epochs: {epochs:.4g} | TFLOPs: {work:,.4g}
    | of the paper's work: {share:.1%} | minutes here: {minutes}"""

REPEATS = 3


def cost_rows(
    trainings: Sequence[Training],
    nums: Mapping[str, int],
    budget: PaperBudget,
    compute: Compute,
    compile: bool,
    directory: Path,
) -> list[dict[str, Any]]:
    """A row per training, with its work and the minutes that follow from a measured step of its network.

    The minutes are those of the training steps, without validation; a step of the full size is measured, and small
    images take somewhat longer for the same work. A finished training costs nothing.

    Args:
        nums: numbers of training images of the data sets, including those held back.
        directory: directory of the trainings.
    """
    rows = []
    for training in trainings:
        num = nums[training.data]
        work = training_flops(training, budget, num)
        is_done = (directory / training.name / RESULT).exists()
        optimizer = training.settings(num, 0, "cpu", "off").optimizer
        seconds = 0.0 if is_done else work / step_rate(training.network, optimizer, compute, compile)
        row = {"name": training.name, "work": work / 1e12, "minutes": "done" if is_done else f"{seconds / 60:,.0f}"}
        levels = training.levels(budget, num)
        row |= {
            "sizes": " ".join(level.label for level in levels),
            "epochs": sum(level.epochs or 0 for level in levels),
        }
        row["share"] = work / (RECIPES[training.data].epochs * training.epoch_flops(num))
        rows.append(row)
    return rows


def training_flops(training: Training, budget: PaperBudget, num: int) -> float:
    """Work of a training on a data set of ``num`` training images, without that of the optimizer."""
    levels, per_epoch = training.levels(budget, num), training.epoch_flops(num)
    full = level_flops(training.level(1), training.network)
    return sum((level.epochs or 0) * per_epoch * level_flops(level, training.network) / full for level in levels)


@lru_cache(maxsize=64)
def step_rate(network: NetworkConfig, optimizer: str, compute: Compute, compile: bool) -> float:
    """FLOPs per second of a training step, of fewer images than in a training where these are large."""
    side = network.image_sizes[0]
    num = max(1, min(BATCH, BATCH * 32**2 // side**2))
    images = random_images(num, network.in_channels, side, compute.device)
    step = step_of(compute.place(PDENet(network)).train(), images, compute, compile, optimizer)
    seconds = statistics.median(alternated({"step": step}, REPEATS, compute.device).values())
    return num * level_flops(Level(side, 1), network) / seconds
