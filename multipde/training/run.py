"""A run: the directory in which a training is recorded, from its settings to its result."""

import itertools
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from multipde.data.batches import evaluation_batches
from multipde.data.datasets import ImageData, load_data
from multipde.mesh.reparametrize import set_reference
from multipde.networks.calibration import recalibrate
from multipde.networks.config import NetworkConfig, default_network
from multipde.networks.convert import conversion
from multipde.networks.network import PDENet
from multipde.training.checkpoint import (
    FORMAT,
    check_new,
    load,
    network_from_record,
    newest_checkpoint,
    read_checkpoint,
    read_json,
    write_network,
    write_text,
)
from multipde.training.evaluate import check_classes, evaluate_batches, place
from multipde.training.log import Log, read_metrics
from multipde.training.loop import Trainer, initial_network
from multipde.training.schedule import Level, Schedule, steps_text
from multipde.training.settings import TrainSettings
from multipde.training.switch import plan_move

RECORD, RESULT, METRICS = "run.json", "result.json", "metrics.jsonl"


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


def train(
    config: NetworkConfig | None,
    schedule: Schedule,
    data: Any,
    run_dir: str | Path,
    *,
    settings: TrainSettings | None = None,
    init: str | Path | None = None,
    data_options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Run:
    """Train a network from coarse to fine and record everything in a new directory.

    Args:
        config: the network; size and steps follow the schedule, classes and normalisation the data. Where there is a
            checkpoint to start from, the network is that of the checkpoint; None, or one with the same channels.
        schedule: the levels.
        data: a name, a pair of torchvision-style data sets or of (images, labels), or an `ImageData`.
        run_dir: a directory that does not exist or is empty.
        init: a checkpoint to start from instead of random weights; it is converted to the first level if need be.
        data_options: for `load_data`, where data is a name.
        quiet: say nothing.

    Raises:
        FileExistsError: the run directory is not empty.
        ValueError: anything in config, schedule, settings or data that does not fit.
    """
    run_dir, settings = Path(run_dir), settings or TrainSettings()
    check_new(run_dir, "; type --resume to go on with a run")
    options = dict(data_options or {})
    config = network_for(config, schedule, init)
    images = load_data(data, size=max(level.size for level in schedule.levels), **options)
    config = _suit(config, images, init)
    trainer = _new_trainer(schedule.of(config), images, settings, run_dir, Log(run_dir / METRICS, quiet), init)
    check_new(run_dir, "; another run took it meanwhile")
    run_dir.mkdir(parents=True, exist_ok=True)
    record = {
        "format": FORMAT,
        "network": asdict(config),
        "levels": [asdict(level) for level in schedule.levels],
        "settings": asdict(settings),
        "data": data if isinstance(data, str) else None,
        "data_options": {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in options.items()},
        "num_train": len(images.train),
        "init": None if init is None else str(Path(init).resolve()),
        "versions": {"multipde": _version(), "torch": torch.__version__},
    }
    write_text(run_dir / RECORD, json.dumps(record, indent=1) + "\n")
    return _finish(trainer, images)


def resume(run_dir: str | Path, data: Any = None, *, quiet: bool = False) -> Run:
    """Go on with a run from its last checkpoint, as if it had never been interrupted.

    A run without a checkpoint starts again from its record; a finished one is returned as it is.

    Args:
        data: the data of a run that was not given a name for them.

    Raises:
        ValueError: no run, or data that are missing.
    """
    run_dir = Path(run_dir)
    if not (run_dir / RECORD).exists():
        raise ValueError(f"run must be a directory with a {RECORD}, got {run_dir}; leave --resume out to start one")
    record = read_json(run_dir / RECORD)
    log = Log(run_dir / METRICS, quiet)
    if (run_dir / RESULT).exists():
        log.say(f"{run_dir} is finished; nothing to do")
        return Run(run_dir, load(run_dir), read_json(run_dir / RESULT), read_metrics(run_dir / METRICS))
    try:
        levels = [Level(**level) for level in record["levels"]]
        settings = TrainSettings(**record["settings"])
        options, init, num_train = record["data_options"], record["init"], record["num_train"]
        source = record["data"] if data is None else data
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run_dir / RECORD} must be the record of a run, got {error}") from None
    if source is None:
        raise ValueError(f"data must be given to resume {run_dir}, which was trained on data without a name")
    plan = Schedule(levels, network_from_record(record.get("network"), run_dir / RECORD))
    images = load_data(source, size=max(level.size for level in levels), **options)
    check_classes(plan.configs()[0], images)
    if len(images.train) != num_train:
        raise ValueError(f"data must be those of the run, {num_train} training images, got {len(images.train)}")
    for partial in run_dir.glob(".*.partial-*"):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
    newest = newest_checkpoint(run_dir)
    if newest is None:
        trainer = _new_trainer(plan, images, settings, run_dir, log, init)
        write_text(run_dir / METRICS, "")
        log.say(f"{run_dir} has no checkpoint: starting again")
        return _finish(trainer, images)
    net, best, state = read_checkpoint(newest)
    trainer = Trainer(net, plan, images, settings, run_dir, log)
    trainer.restore(best, state)
    rows = read_metrics(run_dir / METRICS)[: trainer.state.checkpoints]
    write_text(run_dir / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
    level = levels[trainer.state.index]
    log.say(f"resuming {run_dir} at size {level.size} after epoch {trainer.state.epoch} of {level.epochs}")
    return _finish(trainer, images)


def recorded_data(directory: Path) -> tuple[str, dict[str, Any]] | None:
    """Name and options of the data that a run was trained on; None for a directory that is no run."""
    file = directory / RECORD
    if not file.exists():
        return None
    record = read_json(file)
    return None if record.get("data") is None else (record["data"], record.get("data_options", {}))


def recorded_split(directory: Path | None) -> tuple[int, float]:
    """Seed and share by which a run held back its validation images; the defaults for a directory that is no run."""
    file = directory / RECORD if directory else None
    settings = read_json(file).get("settings", {}) if file is not None and file.exists() else {}
    default = TrainSettings()
    return settings.get("seed", default.seed), settings.get("validation", default.validation)


def next_run_directory(data: str, dynamics: str) -> Path:
    """The first runs/DATA-DYNAMICS-N that does not exist."""
    return next(path for n in itertools.count(1) if not (path := Path("runs") / f"{data}-{dynamics}-{n}").exists())


def starting_network(
    data: str, dynamics: str | None, size: int, preset_name: str | None, init: str | Path | None
) -> NetworkConfig:
    """The network that a user means: that of the checkpoint to start from, else of the preset, else for the data.

    Raises:
        ValueError: a checkpoint of another dynamics, or an unknown preset.
    """
    if init is None or preset_name is not None:
        return default_network(data, dynamics, size, preset_name)
    config = load(init).config
    if dynamics not in (None, config.dynamics):
        raise ValueError(f"dynamics must be that of the checkpoint {init}, {config.dynamics}, got {dynamics}")
    return config


def network_for(config: NetworkConfig | None, schedule: Schedule, init: str | Path | None) -> NetworkConfig:
    """The network that will be trained: the given one, or that of the checkpoint to start from.

    Raises:
        ValueError: a checkpoint of another dynamics or other channels.
    """
    if init is None:
        if config is None:
            raise ValueError("config must be given where there is no checkpoint to start from, got None")
        return config
    found = load(init).config
    for name in ("dynamics", "channels", "out_channels") if config else ():
        if getattr(found, name) != getattr(config, name):
            raise ValueError(
                f"{name} must be that of the checkpoint {init}, {getattr(found, name)}, got {getattr(config, name)}"
            )
    first = schedule.levels[0]
    found = found.on_mesh(first.size)
    return found if first.steps is None else found.with_steps(first.steps)  # T is that of the checkpoint


def _suit(config: NetworkConfig, images: ImageData, init: str | Path | None) -> NetworkConfig:
    """Classes, input channels and normalisation from the data; a checkpoint must have these classes already."""
    if config.dim != 2:
        raise ValueError(f"dim must be 2 for a network that is trained on images, got {config.dim}")
    if init is not None or config.class_names:
        check_classes(config, images)
    return replace(
        config,
        classes=len(images.class_names),
        class_names=images.class_names,
        in_channels=len(images.mean),
        mean=config.mean or images.mean,
        std=config.std or images.std,
    )


def _new_trainer(
    plan: Schedule, images: ImageData, settings: TrainSettings, run_dir: Path, log: Log, init: str | Path | None
) -> Trainer:
    """At the first level, with the weights that the seed draws or those of a checkpoint."""
    start = plan.configs()[0]
    reference = max(level.size for level in plan.levels) if settings.coordinates == "finest" else None
    trainer = Trainer(initial_network(start, settings.seed, reference), plan, images, settings, run_dir, log)
    if init is not None:
        trainer.net.load_state_dict(_taken_up(init, start, trainer).state_dict())
    return trainer


def _taken_up(init: str | Path, start: NetworkConfig, trainer: Trainer) -> PDENet:
    """The checkpoint on the mesh and time grid of the first level."""
    net = place(load(init), trainer.device)
    is_finest = trainer.settings.coordinates == "finest"
    target = max(level.size for level in trainer.schedule.levels) if is_finest else start.sizes[0]
    if net.config.sizes != (target,) * 2 or net.config.block_steps != start.block_steps:
        settings = replace(trainer.settings, coordinates="level", auto_steps=False)
        level = replace(trainer.schedule.levels[0], size=target, mixed=())
        move = plan_move(net, level, start.block_steps, settings, trainer.draw(0))
        net = place(move(net), trainer.device)  # pyright: ignore[reportArgumentType]
        recalibrate(net, trainer.calibration_images(target, 0))
    if is_finest:
        set_reference(net, 1 / target)
        net.config = replace(net.config, reference=target)
        if start.sizes[0] != target:
            down = replace(conversion(net, size=start.size), keep_reference=True)
            net = place(down(net), trainer.device)  # pyright: ignore[reportArgumentType]
            recalibrate(net, trainer.calibration_images(start.sizes[0], 0))
    return net


def _finish(trainer: Trainer, images: ImageData) -> Run:
    """Train what is left, test the best weights, write them and the result."""
    log, run_dir, size = trainer.log, trainer.run_dir, trainer.schedule.levels[-1].size
    for note in images.notes:
        log.say(f"note: {note}")
    log.table(trainer.schedule.rows(), f"{images.name}, {trainer.net.config.dynamics}")
    try:
        model = trainer.run()
    except KeyboardInterrupt:
        log.say(f"interrupted; go on after the last whole epoch with: multipde train --run {run_dir} --resume")
        raise
    batches = evaluation_batches(images.test, None, size, 250, trainer.device, trainer.normalize)
    test = evaluate_batches(model, batches, trainer.device, trainer.settings.amp)
    state = trainer.state
    result = {
        "format": FORMAT,
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "seconds": state.seconds,
        "flops": state.flops,
        "levels": state.levels,
        "moves": state.moves,
    }
    write_network(model, run_dir)
    write_text(run_dir / RESULT, json.dumps(result, indent=1) + "\n")
    log.table(_summary(trainer.schedule, state.levels), "What each level took and reached")
    log.say(
        f"test accuracy {test.accuracy:.2%}, cross entropy {test.loss:.3f} at size {size} "
        f"after {state.seconds / 60:.1f} min; written to {run_dir}"
    )
    return Run(run_dir, model, result, read_metrics(run_dir / METRICS))


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


def _version() -> str:
    from multipde import __version__

    return __version__
