"""Schedule, settings and starting checkpoint of a recorded run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from multipde.data.batches import images_per_epoch
from multipde.storage.records import brief, from_record, json_bytes, record_of
from multipde.storage.run_directory import training_record
from multipde.storage.schema import RUN
from multipde.storage.stored_network import Given, spec_from_record
from multipde.training.budget import parse_budget
from multipde.training.level import Level
from multipde.training.optimizers import planned_flops
from multipde.training.recipe import PLAIN
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings

FORMER = {**PLAIN, "precise_images": 0}
"""Settings of runs whose records do not have them, where the default has another value."""


def recorded_plan(
    record: Mapping[str, Any], file: Path, given: Given = None
) -> tuple[Schedule, TrainSettings, str | None]:
    """Schedule with network, settings and starting checkpoint from a run's record; ``given`` is ``model`` of `load`."""
    settings = from_record(TrainSettings, FORMER | record["settings"], file, "the settings of a run")
    network = spec_from_record(record["network"], file, given)
    stages = [from_record(Level, level, file, "a level") for level in record["levels"]]
    try:
        return Schedule(stages, network), settings, record.get("init")
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ValueError(f"{brief(error)} in {file}") from None


def check_record(record: Mapping[str, Any], file: Path) -> None:
    """Raise ValueError for the record of a new run that could not be read again."""
    found = record_of(json_bytes(record), file, RUN)
    from_record(TrainSettings, found["settings"], file, "the settings of a run")
    for level in found["levels"]:
        from_record(Level, level, file, "a level")


def recorded_split(directory: Path | None) -> tuple[int, float]:
    """Seed and share of the validation split of a training; the defaults where there is no record of it."""
    record = None if directory is None else training_record(directory)
    recorded = {} if record is None else record["settings"]
    settings = from_record(TrainSettings, recorded, directory or Path(), "the settings of a run")
    return settings.seed, settings.validation


def flops_to_share(settings: TrainSettings) -> float:
    """The budget of the settings in FLOPs, which levels are to share; ValueError for none, and for one in minutes."""
    budget = None if settings.budget is None else parse_budget(settings.budget)
    if budget is None or budget.unit != "flops":
        raise ValueError(f"budget must be in FLOPs where work is given, got {settings.budget}; type --budget 30TFLOPs")
    return budget.amount


def shared_budget(
    plan: Schedule, flops: float, work: Sequence[float], num_images: int, optimizer: str = "sgd"
) -> Schedule:
    """The schedule whose levels have their shares of a budget in FLOPs, with epochs of whole batches of the images."""
    batches = [max(1, num_images // level.batch) for level in plan.levels]
    seen = images_per_epoch(num_images, plan.levels[-1].batch)
    return plan.of_work(work, flops / seen, batches, planned_flops(plan.configs()[0], optimizer))


def extended(plan: Schedule, levels: Sequence[tuple[int, float]]) -> Schedule:
    """A schedule with further levels of given sizes and epochs, each with its own learning-rate cycle.

    Batch and peak learning rate are those of the last level. ValueError for a schedule without numbers of epochs.
    """
    if not levels:
        return plan
    last = plan.levels[-1]
    if last.epochs is None:
        raise ValueError("extend must follow a schedule with numbers of epochs, got one with auto")
    more = [
        replace(last, size=size, epochs=epochs, steps=None, mixed=(), detail=1, a_trous=None, policy="one_cycle")
        for size, epochs in levels
    ]
    return Schedule([*plan.levels, *more], plan.network)
