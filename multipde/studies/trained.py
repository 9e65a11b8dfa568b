"""A training that is part of a study: done once, taken up where it was cut off."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from multipde.networks.config import NetworkConfig
from multipde.runtime.device import choose_amp, choose_device
from multipde.runtime.signals import Interrupted
from multipde.storage.records import FORMAT, read_json
from multipde.storage.run_directory import RECORD
from multipde.training.level import Level
from multipde.training.plan import recorded_plan
from multipde.training.run import Run, resume, train
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings


def trained(
    directory: Path,
    network: NetworkConfig,
    levels: Sequence[Level],
    data: Any,
    settings: TrainSettings,
    options: Mapping[str, Any] | None = None,
    *,
    num_train: int | None = None,
    quiet: bool = True,
) -> Run:
    """The run in a directory: begun, gone on with, or as it is where it is finished.

    Args:
        data: as for `train`, with its options.
        num_train: images that a run which is there must have been trained on, held back ones included.

    Raises:
        ValueError: the directory holds another training.
        DivergedError: the training is given up.
        Interrupted: a signal asked to stop; everything is saved.
    """
    settings = replace(settings, amp=choose_amp(choose_device(settings.device), settings.amp))  # as `train` records it
    try:
        if not directory.exists():
            plan = Schedule(levels)
            return train(network, plan, data, directory, settings=settings, data_options=options, quiet=quiet)
        check_same(directory, levels, settings, num_train)
        return resume(directory, None if isinstance(data, str) else data, quiet=quiet)
    except Interrupted as error:
        where = str(error).partition(";")[0]
        raise Interrupted(f"{directory} {where}; the same command goes on with it", error.signum) from None


def check_same(directory: Path, levels: Sequence[Level], settings: TrainSettings, num_train: int | None = None) -> None:
    """Raise ValueError if a run directory records another training than this one."""
    file = directory / RECORD
    if not file.exists():
        return
    record = read_json(file, FORMAT)
    plan, recorded, _ = recorded_plan(record, file)
    is_same = plan.levels == tuple(levels) and recorded == settings and num_train in (None, record.get("num_train"))
    if not is_same:
        raise ValueError(f"run_dir must hold this study, got another training in {directory}; type --run-dir DIR")
