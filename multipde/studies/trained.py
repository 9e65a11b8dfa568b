"""A training that is part of a study: it is done once, and continued if it was interrupted."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from multipde.networks.model_spec import ModelSpec
from multipde.runtime.device import Compute
from multipde.runtime.signals import Interrupted
from multipde.storage.run_directory import RECORD, read_run_record
from multipde.training.finished_run import Run
from multipde.training.level import Level
from multipde.training.plan import recorded_plan
from multipde.training.run import resume, train
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings


def trained(
    directory: Path,
    network: ModelSpec,
    levels: Sequence[Level],
    data: Any,
    settings: TrainSettings,
    options: Mapping[str, Any] | None = None,
    *,
    num_train: int | None = None,
    quiet: bool = True,
    **start: Any,
) -> Run:
    """The run in a directory, which is started if it does not exist, continued if it is not finished, and returned.

    Args:
        network: the description of the network, which builds it again where its record cannot.
        data, options: data and data_options as in `train`.
        num_train: number of training images, including those held back, that an existing run must have.
        start: what `train` is given besides, such as weights.
    """
    given: Any = network
    settings = replace(settings, amp=Compute.of(settings.device, settings.amp).amp)  # as `train` records it
    try:
        if not (directory / RECORD).exists():  # a directory may be left from a start that failed
            plan = Schedule(levels)
            return train(network, plan, data, directory, settings=settings, data_options=options, quiet=quiet, **start)
        record = read_run_record(directory)
        plan, recorded, _ = recorded_plan(record, directory / RECORD, given)
        is_same = (plan.levels, recorded) == (tuple(levels), settings)
        if not is_same or num_train not in (None, record.get("num_train")):
            found = f"got another training in {directory}"
            raise ValueError(f"run_dir must hold this study, {found}; type --run-dir DIR")
        return resume(directory, None if isinstance(data, str) else data, model=given, quiet=quiet)
    except Interrupted as error:
        where = str(error).partition(";")[0]
        raise Interrupted(f"{directory} {where}; the same command goes on with it", error.signum) from None
