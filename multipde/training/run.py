"""A run: the directory in which a training is recorded, from its settings to its result."""

import itertools
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from multipde.data.checksum import data_checksum
from multipde.data.datasets import ImageData, load_data, split_indices
from multipde.evaluation.metrics import check_classes
from multipde.networks.config import NetworkConfig
from multipde.networks.network import PDENet
from multipde.runtime.device import choose_amp, choose_device
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
from multipde.storage.network import load, network_files
from multipde.storage.provenance import RecordedFiles, changed_data, differences, machine, provenance, versions
from multipde.storage.records import FORMAT, json_bytes, read_json
from multipde.storage.rows import read_metrics
from multipde.storage.run_directory import METRICS, RECORD, RESULT, _of, check_new, newest_checkpoint, recorded_data
from multipde.training.level import steps_text
from multipde.training.log import TrainingLog
from multipde.training.plan import recorded_plan
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings
from multipde.training.start import network_for, new_trainer, suited
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
    model: PDENet
    result: Mapping[str, Any]
    metrics: list[dict[str, Any]]


@process_group()
def train(
    config: NetworkConfig | None,
    schedule: Schedule,
    data: Any,
    run_dir: str | Path,
    *,
    settings: TrainSettings | None = None,
    init: str | Path | None = None,
    data_options: Mapping[str, Any] | None = None,
    balance: bool = False,
    quiet: bool = False,
) -> Run:
    """Train a network from coarse to fine and record everything in a new directory.

    Under torchrun all processes train together, each on its slice of every batch, and the first one writes.

    Args:
        config: the network; size and steps follow the schedule, classes and normalisation the data. Where there is a
            checkpoint to start from, the network is that of the checkpoint; None, or one with the same channels.
        schedule: the levels.
        data: a name, a pair of torchvision-style data sets or of (images, labels), or an `ImageData`.
        run_dir: a directory that does not exist or is empty.
        init: a checkpoint to start from instead of random weights; it is converted to the first level if need be.
        data_options: for `load_data`, where data is a name.
        balance: larger batches and learning rates on coarser levels, see `Schedule.balanced`.
        quiet: say nothing.

    Raises:
        FileExistsError: the run directory is not empty.
        ValueError: anything in config, schedule, settings or data that does not fit.
    """
    run_dir, settings = from_rank_zero(Path(run_dir)), settings or TrainSettings()
    on_rank_zero(lambda: check_new(run_dir, "; type --resume to go on with a run"))
    options = dict(data_options or {})
    config = network_for(config, schedule, init)
    images = rank_zero_first(lambda: load_data(data, size=max(level.size for level in schedule.levels), **options))
    config = suited(config, images, init)
    settings = replace(settings, amp=choose_amp(choose_device(settings.device), settings.amp))
    if balance:
        train_indices, _ = split_indices(len(images.train), settings.seed, settings.validation)
        schedule = schedule.balanced(len(train_indices), multiple=num_processes())
    with determinism(settings.deterministic), pending_signals(SAVE):
        board = _board(run_dir, schedule.of(config), settings)
        trainer = new_trainer(schedule.of(config), images, settings, run_dir, _log(run_dir, quiet, board), init)
        record = {
            "format": FORMAT,
            "network": asdict(config),
            "levels": [asdict(level) for level in schedule.levels],
            "settings": asdict(settings),
            "data": data if isinstance(data, str) else None,
            "data_options": {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in options.items()},
            "num_train": len(images.train),
            "init": None if init is None else str(Path(init).resolve()),
            "provenance": provenance(images),
        }
        with ExitStack() as held:
            on_rank_zero(lambda: _take_new(run_dir, record, held))
            return _finish(trainer, images)


@process_group()
def resume(run_dir: str | Path, data: Any = None, *, quiet: bool = False) -> Run:
    """Go on with a run from its last checkpoint, as if it had never been interrupted.

    A run without a checkpoint starts again from its record; a finished one is returned as it is.

    Args:
        data: the data of a run that was not given a name for them.

    Raises:
        ValueError: no run, or data that are missing.
    """
    run_dir = from_rank_zero(Path(run_dir))
    if not (run_dir / RECORD).exists():
        raise ValueError(f"run must be a directory with a {RECORD}, got {run_dir}; leave --resume out to start one")
    record, file = read_json(run_dir / RECORD, FORMAT), run_dir / RECORD
    log = _log(run_dir, quiet)
    if (run_dir / RESULT).exists():
        log.say(f"{run_dir} is finished; nothing to do")
        return Run(run_dir, load(run_dir), read_json(run_dir / RESULT, FORMAT), read_metrics(run_dir / METRICS))
    plan, settings, init = recorded_plan(record, file)
    log.board = _board(run_dir, plan, settings) if is_rank_zero() else None
    recorded = recorded_data(run_dir)
    source, options = (data, recorded[1] if recorded else {}) if data is not None else recorded or (None, {})
    if source is None:
        raise ValueError(f"data must be given to resume {run_dir}, which was trained on data without a name")
    images = rank_zero_first(lambda: load_data(source, size=max(level.size for level in plan.levels), **options))
    check_classes(plan.configs()[0], images)
    _check_data(record, images)
    with determinism(settings.deterministic), ExitStack() as held, pending_signals(SAVE):
        on_rank_zero(lambda: _take(run_dir, held))
        newest = on_rank_zero(lambda: newest_checkpoint(run_dir))
        trainer = new_trainer(plan, images, settings, run_dir, log, init if newest is None else None)
        for line in differences(_of(record, "provenance"), {"versions": versions(), "machine": machine()}):
            log.say(f"note: {line}: the last bits may differ from an undisturbed run")
        if newest is None:
            log.say(f"{run_dir} has no checkpoint: starting again")
        else:
            trainer.restore(newest)
            state = trainer.state
            log.say(f"resuming {run_dir} at {state.reached(plan.levels[state.index].size)}")
        on_rank_zero(lambda: log.keep_rows(trainer.state.rows))
        return _finish(trainer, images)


def _log(run_dir: Path, quiet: bool, board: Board | None = None) -> TrainingLog:
    """That of the writer; the others have nothing to say."""
    return TrainingLog(run_dir / METRICS, quiet, board=board) if is_rank_zero() else TrainingLog(quiet=True)


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


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Algorithms that give the same bits on the same machine, and the setting of before afterwards."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def _check_data(record: Mapping[str, Any], images: ImageData) -> None:
    """Raise ValueError for data that are not those of the run."""
    num = record.get("num_train")
    if len(images.train) != num:
        raise ValueError(f"data must be those of the run, {num} training images, got {len(images.train)}")
    recorded = _of(_of(record, "provenance"), "data").get("sha256")
    if recorded is not None and recorded != (found := data_checksum(images)):
        raise ValueError(changed_data(recorded, found))


def _board(run_dir: Path, plan: Schedule, settings: TrainSettings) -> Board | None:
    return Board(run_dir, plan.configs()[0], len(plan.levels)) if settings.tensorboard else None


def next_run_directory(data: str, dynamics: str) -> Path:
    """The first runs/DATA-DYNAMICS-N that does not exist."""
    return next(path for n in itertools.count(1) if not (path := Path("runs") / f"{data}-{dynamics}-{n}").exists())


def _finish(trainer: Trainer, images: ImageData) -> Run:
    """Train what is left, test the best weights, write them and the result."""
    log, run_dir = trainer.log, trainer.run_dir
    for note in images.notes:
        log.say(f"note: {note}")
    log.table(trainer.schedule.rows(), f"{images.name}, {trainer.net.config.dynamics}")
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
    log.table(_summary(trainer.schedule, state.levels), "What each level took and reached")
    log.say(
        f"test accuracy {test.accuracy:.2%}, cross entropy {test.loss:.3f} at size {model.config.sizes[0]} "
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


def _write_result(run_dir: Path, model: PDENet, result: Mapping[str, Any]) -> None:
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
