"""A run: the directory in which a training is recorded, from its settings to its result."""

import itertools
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from multipde.data.checksum import data_checksum
from multipde.data.datasets import ImageData, load_data, split_indices
from multipde.evaluation.metrics import Score, check_classes
from multipde.networks.model_spec import spec_of
from multipde.runtime.console import Log
from multipde.runtime.determinism import determinism
from multipde.runtime.device import Compute
from multipde.runtime.processes import (
    from_rank_zero,
    is_rank_zero,
    num_processes,
    on_rank_zero,
    process_group,
    rank_zero_first,
)
from multipde.runtime.signals import SAVE, pending_signals
from multipde.storage.files import clear_partials, write_file, write_files, writing
from multipde.storage.lock import locked
from multipde.storage.provenance import (
    RecordedFiles,
    changed_data,
    data_record,
    differences,
    machine,
    provenance,
    versions,
)
from multipde.storage.records import FORMAT, json_bytes, read_json
from multipde.storage.rows import read_metrics
from multipde.storage.run_directory import (
    METRICS,
    PAGE,
    RECORD,
    RESULT,
    check_new,
    newest_checkpoint,
    part_of,
    recorded_data,
)
from multipde.storage.stored_network import Given, load, network_files
from multipde.training.level import steps_text
from multipde.training.listeners import Listeners
from multipde.training.objective import Objective
from multipde.training.plan import extended, recorded_plan
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings
from multipde.training.start import Start, network_for, new_trainer, read_start, suited
from multipde.training.tensorboard import Board
from multipde.training.trainer import Trainer


@dataclass(frozen=True)
class Run:
    """A finished training.

    Args:
        directory: where it is recorded; `load` reads its network.
        model: the best weights on the validation images at the last level.
        result: test accuracy and cross entropy, seconds, FLOPs, a record per level and per move.
        metrics: a row per epoch.
    """

    directory: Path
    model: Any
    result: Mapping[str, Any]
    metrics: list[dict[str, Any]]


@process_group()
def train(
    model: Any,
    schedule: Schedule,
    data: Any,
    run_dir: str | Path,
    *,
    settings: TrainSettings | None = None,
    init: str | Path | Start | None = None,
    data_options: Mapping[str, Any] | None = None,
    balance: bool = False,
    loss: Score | None = None,
    metric: Score | None = None,
    optimizer: Callable[[Iterable[nn.Parameter]], Any] | None = None,
    quiet: bool = False,
) -> Run:
    """Train a network from coarse to fine and record everything in a new directory.

    Under torchrun all processes train together, each on its slice of every batch, and rank zero writes.

    Args:
        model: the network: a `NetworkConfig`; the name of a classifier of torchvision or timm or an import path, see
            `external_model`; a function that makes a network; or a module, whose weights are the start, and of which a
            copy is trained. Size and steps follow the schedule, classes and normalisation the data. With a checkpoint
            to start from: None, or the same network.
        schedule: the levels.
        data: a name, a pair of torchvision-style data sets or of (images, labels), or an `ImageData`.
        run_dir: a directory that does not exist or is empty.
        init: a checkpoint to start from instead of random weights; it is converted to the first level if need be.
        data_options: for `load_data`, where data is a name.
        balance: larger batches and learning rates on coarser levels, see `Schedule.balanced`.
        loss: (scores, labels) to the mean of what is minimised; cross entropy if left out.
        metric: (scores, labels) to a mean by which the best weights are chosen, more being better; else the accuracy.
        optimizer: parameters to an optimizer, whose rates follow the schedule; SGD with momentum if left out.
        quiet: say nothing.

    Raises:
        FileExistsError: the run directory is not empty.
        ValueError: anything in model, schedule, settings or data that does not fit.
    """
    run_dir, settings = from_rank_zero(Path(run_dir)), settings or TrainSettings()
    on_rank_zero(lambda: check_new(run_dir, "; type --resume to go on with a run"))
    options, objective = dict(data_options or {}), Objective(loss, metric, optimizer)
    given: Any = model if isinstance(model, str) or callable(model) else None
    spec, start = network_for(model, schedule, read_start(init, given))
    images = rank_zero_first(lambda: load_data(data, size=max(level.size for level in schedule.levels), **options))
    spec = suited(spec, images, start is not None)
    settings = replace(settings, amp=Compute.of(settings.device, settings.amp).amp)
    if balance:
        train_indices, _ = split_indices(len(images.train), settings.seed, settings.validation)
        schedule = schedule.balanced(len(train_indices), multiple=num_processes())
    with determinism(settings.deterministic), pending_signals(SAVE):
        plan = schedule.of(spec)
        plan.flops()  # a size that the network cannot take is told before anything is written
        log = _listeners(run_dir, quiet, plan, settings)
        trainer = new_trainer(plan, images, settings, run_dir, log, start, objective)
        record = {
            "format": FORMAT,
            "network": spec.record(),
            "levels": [asdict(level) for level in schedule.levels],
            "settings": asdict(settings),
            "data": data if isinstance(data, str) else None,
            "data_options": {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in options.items()},
            "num_train": len(images.train),
            "init": None if start is None or start.path is None else str(start.path.resolve()),
            "objective": objective.record(),
            "provenance": provenance(images),
        }
        with ExitStack() as held:
            on_rank_zero(lambda: _take_new(run_dir, record, held))
            return _finish(trainer, images)


@process_group()
def resume(
    run_dir: str | Path,
    data: Any = None,
    *,
    model: Given = None,
    extend: Sequence[tuple[int, float]] = (),
    loss: Score | None = None,
    metric: Score | None = None,
    optimizer: Callable[[Iterable[nn.Parameter]], Any] | None = None,
    quiet: bool = False,
) -> Run:
    """Go on with a run from its last checkpoint, as if it had never been interrupted.

    A run without a checkpoint starts again from its record; a finished one is returned as it is, or trained further.

    Args:
        data: the data of a run that was not given a name for them.
        model: the network of a run that was given it in Python or by an import path.
        extend: (size, epochs) of levels to train after the end of a finished run, each with a cycle of the learning
            rate of its own; batch and peak rate are those of the last level.
        loss: that of the run, where it was given one; likewise metric and optimizer.

    Raises:
        ValueError: no run, data or a network that are missing, or an extension of a run that is not finished.
    """
    run_dir = from_rank_zero(Path(run_dir))
    if not (run_dir / RECORD).exists():
        raise ValueError(f"run must be a directory with a {RECORD}, got {run_dir}; leave --resume out to start one")
    record, file = read_json(run_dir / RECORD, FORMAT), run_dir / RECORD
    is_finished = (run_dir / RESULT).exists()
    if is_finished and not extend:
        Log(quiet=quiet or not is_rank_zero()).say(f"{run_dir} is finished; nothing to do")
        rows = read_metrics(run_dir / METRICS)
        return Run(run_dir, load(run_dir, model), read_json(run_dir / RESULT, FORMAT), rows)
    if extend and not is_finished:
        raise ValueError(f"run must be finished to be extended, got {run_dir}; type --resume instead of --extend")
    began, settings, init = recorded_plan(record, file, model)
    plan = extended(began, extend)
    size = max(level.size for level in plan.levels)
    is_larger = size > max(level.size for level in began.levels)  # images are then read at a size that is new
    objective = Objective(loss, metric, optimizer)
    objective.check_same(record.get("objective"))
    log = _listeners(run_dir, quiet, plan, settings)
    recorded = recorded_data(run_dir)
    source, options = (data, recorded[1] if recorded else {}) if data is not None else recorded or (None, {})
    if source is None:
        raise ValueError(f"data must be given to resume {run_dir}, which was trained on data without a name")
    images = rank_zero_first(lambda: load_data(source, size=size, **options))
    check_classes(plan.configs()[0], images)
    _check_data(record, images, is_larger)
    plan.flops()
    with determinism(settings.deterministic), ExitStack() as held, pending_signals(SAVE):
        on_rank_zero(lambda: _take(run_dir, held))
        newest = on_rank_zero(lambda: newest_checkpoint(run_dir))
        start = read_start(init, model) if newest is None and init is not None else None
        trainer = new_trainer(plan, images, settings, run_dir, log, start, objective, newest)
        if extend:
            origin = part_of(record, "provenance") | ({"data": data_record(images)} if is_larger else {})
            more = {"levels": [asdict(level) for level in plan.levels], "provenance": origin}
            on_rank_zero(lambda: _write_extended(run_dir, {**record, **more}))
        for line in differences(part_of(record, "provenance"), {"versions": versions(), "machine": machine()}):
            log.say(f"note: {line}: the last bits may differ from an undisturbed run")
        if newest is None:
            log.say(f"{run_dir} has no checkpoint: starting again")
        else:
            state = trainer.state
            log.say(f"resuming {run_dir} at {state.reached(plan.levels[state.index].size)}")
        on_rank_zero(lambda: log.keep_rows(trainer.state.rows))
        return _finish(trainer, images)


def _listeners(run_dir: Path, quiet: bool, plan: Schedule, settings: TrainSettings) -> Listeners:
    """Those of rank zero; the other processes have nothing to say."""
    if not is_rank_zero():
        return Listeners(Log(quiet=True))
    sizes = [level.size for level in plan.levels]
    boards = [Board(run_dir, plan.configs()[0], sizes)] if settings.tensorboard else []
    return Listeners(Log(quiet=quiet), run_dir / METRICS, boards)


def _write_extended(run_dir: Path, record: Mapping[str, Any]) -> None:
    """The run is no longer finished, and has more levels."""
    for name in (RESULT, PAGE):
        (run_dir / name).unlink(missing_ok=True)
    write_file(run_dir / RECORD, json_bytes(record))


def _take(run_dir: Path, held: ExitStack) -> None:
    """Nobody else gets into the directory until the stack is closed."""
    held.enter_context(locked(run_dir))
    clear_partials(run_dir)


def _take_new(run_dir: Path, record: Mapping[str, Any], held: ExitStack) -> None:
    """Make the directory, and write down what will be trained there."""
    with writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    held.enter_context(locked(run_dir))
    check_new(run_dir, "; another run took it meanwhile")
    clear_partials(run_dir)
    write_file(run_dir / RECORD, json_bytes(record))


def _check_data(record: Mapping[str, Any], images: ImageData, is_larger: bool) -> None:
    """Raise ValueError for data that are not those of the run; images of a new size can only be counted."""
    num = record.get("num_train")
    if len(images.train) != num:
        raise ValueError(f"data must be those of the run, {num} training images, got {len(images.train)}")
    recorded = part_of(part_of(record, "provenance"), "data").get("sha256")
    if not is_larger and recorded is not None and recorded != (found := data_checksum(images)):
        raise ValueError(changed_data(recorded, found))


def next_run_directory(data: str, dynamics: str) -> Path:
    """The first runs/DATA-DYNAMICS-N that does not exist."""
    return next(path for n in itertools.count(1) if not (path := Path("runs") / f"{data}-{dynamics}-{n}").exists())


def _finish(trainer: Trainer, images: ImageData) -> Run:
    """Train what is left, test the best weights, write them and the result."""
    log, run_dir = trainer.log, trainer.run_dir
    for note in images.notes:
        log.say(f"note: {note}")
    log.log.table(trainer.schedule.rows(), f"{images.name}, {spec_of(trainer.net).label}")
    with closing(_Files(run_dir, images)) as files:
        with pending_signals() as trainer.signals, closing(log):
            trainer.after_epoch = files.settle
            model = trainer.run()
            test = trainer.test()
            log.tested(test.confusion)
        files.settle(wait=True)
    state = trainer.state
    result = {
        "format": FORMAT,
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "seconds": state.seconds,
        "flops": state.flops,
        "levels": state.levels,
        "moves": state.moves,
        "rollbacks": state.rollbacks,
    }
    on_rank_zero(lambda: _write_result(run_dir, model, result))
    log.log.table(_summary(trainer.schedule, state.levels), "What each level took and reached")
    log.say(
        f"test accuracy {test.accuracy:.2%}, cross entropy {test.loss:.3f} at size {spec_of(model).sizes[0]} "
        f"after {state.seconds / 60:.1f} min; written to {run_dir}"
    )
    if trainer.signals.stop:  # it came behind the last step; whoever called us is asked instead
        signal.raise_signal(trainer.signals.stop)
    return Run(run_dir, model, result, read_metrics(run_dir / METRICS))


class _Files:
    """Rank zero's `RecordedFiles`; what is wrong with the files is raised by all processes."""

    def __init__(self, run_dir: Path, images: ImageData):
        self.recorded = RecordedFiles(images, run_dir / RECORD) if is_rank_zero() else None

    def settle(self, wait: bool = False) -> None:
        on_rank_zero(lambda: self.recorded and self.recorded.settle(wait))

    def close(self) -> None:
        if self.recorded is not None:
            self.recorded.close()


def _write_result(run_dir: Path, model: nn.Module, result: Mapping[str, Any]) -> None:
    write_files(run_dir, network_files(model))
    write_file(run_dir / RESULT, json_bytes(result))


def _summary(schedule: Schedule, levels: list[dict[str, Any]]) -> list[dict[str, str]]:
    rows, flops, seconds = [], 0.0, 0.0
    total_flops, total_seconds = levels[-1]["total_flops"], levels[-1]["total_seconds"]
    for planned, reached in zip(schedule.rows(), levels, strict=True):
        rows.append(
            {"level": planned["level"], "size": planned["size"]}
            | {
                "steps": steps_text(tuple(reached["steps"])),
                "epochs": f"{reached['epochs']:g}",
                "share of work": f"{(reached['total_flops'] - flops) / total_flops:.0%}",
                "share of time": f"{(reached['total_seconds'] - seconds) / total_seconds:.0%}",
                "best validation": f"{reached['validation_accuracy']:.1%}",
            }
        )
        flops, seconds = reached["total_flops"], reached["total_seconds"]
    return rows
