"""Train a network and record the training in a directory; resume an interrupted one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from multipde.data.augmentation import ImageFunction
from multipde.data.datasets import load_data, split_indices
from multipde.evaluation.metrics import Score, check_classes
from multipde.mesh.modes import ordinary_tensors
from multipde.runtime.console import Log
from multipde.runtime.device import Compute, determinism
from multipde.runtime.processes import (
    from_rank_zero,
    is_rank_zero,
    num_processes,
    on_rank_zero,
    process_group,
    rank_zero_first,
)
from multipde.runtime.signals import SAVE, pending_signals
from multipde.storage.provenance import check_data, data_record, differences, provenance, record_moved, tested_images
from multipde.storage.records import read_record
from multipde.storage.rows import read_metrics
from multipde.storage.run_directory import (
    METRICS,
    RECORD,
    RESULT,
    check_new_run,
    checkpoints_of,
    moved_data,
    read_result,
    read_run_record,
    recorded_data,
    resolved,
)
from multipde.storage.schema import FORMAT, RUN
from multipde.storage.stored_network import Given, load
from multipde.training.finished_run import Run, finish_run
from multipde.training.job import extend_record, take_shared
from multipde.training.level import Level
from multipde.training.listeners import Listeners
from multipde.training.objective import Objective
from multipde.training.plan import check_record, extended, flops_to_share, recorded_plan, shared_budget
from multipde.training.recipe import recipe_text
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings
from multipde.training.start import Start, fit_to_data, network_for, new_trainer, read_start
from multipde.training.trackers import check_trackers, trackers
from multipde.training.weights_file import WeightsFile, weights_given


@process_group()
@ordinary_tensors()
@torch.enable_grad()
def train(
    model: Any,
    schedule: Schedule | Sequence[Level],
    data: Any,
    run_dir: str | Path,
    *,
    settings: TrainSettings | None = None,
    init: str | Path | Start | None = None,
    weights: str | Path | None = None,
    from_size: int | None = None,
    data_options: Mapping[str, Any] | None = None,
    balance: bool = False,
    work: Sequence[float] | None = None,
    loss: Score | None = None,
    metric: Score | None = None,
    optimizer: Callable[[Iterable[nn.Parameter]], Any] | None = None,
    quiet: bool = False,
) -> Run:
    """Train a network from coarse to fine and record everything in a new directory.

    The network is trained on each level in turn and converted to the next one, with its optimizer state. The weights
    with the best validation accuracy on the last level are tested and written. Under torchrun all processes train
    together, each on its slice of every batch, and rank zero writes.

    Args:
        model: the network: a `NetworkConfig`; the name of a classifier of torchvision or timm or an import path, see
            `external_model`; a function that makes a network; or a module, of which a copy is trained, starting from
            its weights. Size and steps follow the schedule, classes and normalisation the data. With ``init``: None, or
            the same network.
        schedule: the levels in the order of training, each with size, epochs, batch and learning rate, see `Level`; a
            `Schedule` or a list of levels.
        data: the name of a data set, a pair of torchvision-style data sets or of (images, labels) for training and
            test, or an `ImageData`, see `load_data`.
        run_dir: a directory that does not exist or is empty.
        settings: all other choices, from the seed to the optimizer, penalty and device; the defaults if None.
        init: a checkpoint whose weights the training starts from; converted to the first level if its mesh differs.
        weights: a state dict in .safetensors, .pt or .pth from which the network starts, instead of a checkpoint; where
            it was trained for another number of classes, the last layer begins at random.
        from_size: side in pixels of the images for which the weights were trained, from which the network is converted
            to the first level; None to take the stencils as they are.
        data_options: keyword arguments of `load_data`, where data is a name.
        balance: use larger batches and learning rates on coarser levels, see `Schedule.balanced`.
        work: a share of ``settings.budget``, which is in FLOPs, for each level; their numbers of epochs follow from it.
        loss: a function of (scores, labels) to the mean loss; cross entropy if None.
        metric: a function of (scores, labels) to a mean by which the best weights are chosen, larger being better; the
            accuracy if None.
        optimizer: a function of the parameters to an optimizer, whose learning rates follow the schedule; that of
            the settings if None.
        quiet: print nothing.

    Raises:
        FileExistsError: the run directory is not empty.
        ValueError: an argument is invalid or does not fit the others, or the training diverged.
        Interrupted: a signal stopped the training; a checkpoint is saved, from which `resume` continues.
    """
    run_dir, settings = from_rank_zero(Path(run_dir)), settings or TrainSettings()
    schedule = schedule if isinstance(schedule, Schedule) else Schedule(schedule)
    if not isinstance(settings, TrainSettings):
        got = type(settings).__name__
        raise ValueError(f"settings must be TrainSettings, got {got}; type TrainSettings(optimizer='muon', ...)")
    on_rank_zero(lambda: check_new_run(run_dir, "; type --resume to go on with a run"))
    check_trackers(settings)
    flops = 0.0 if work is None else flops_to_share(settings)
    function = settings.augment if callable(settings.augment) else None
    settings = settings if function is None else replace(settings, augment=None)
    given_weights, smoothing = weights_given(weights, from_size, init), settings.label_smoothing
    whiten = settings.whiten and init is None and weights is None and not isinstance(model, nn.Module)
    settings = replace(settings, whiten=whiten, label_smoothing=0.0 if loss else smoothing)
    options, objective = dict(data_options or {}), Objective(loss, metric, optimizer, function)
    given: Any = model if isinstance(model, str) or callable(model) else None
    (spec, start), side = network_for(model, schedule, read_start(init, given)), schedule.image_size
    images = rank_zero_first(lambda: tested_images((data, options), side, start.path if start else None))
    if len(images.class_names) < 2:
        got = f"one, {', '.join(images.class_names)!r}; folders of classes may lie one level deeper"
        raise ValueError(f"data must have at least two classes, got {got}")
    spec = fit_to_data(spec, images, start is not None)
    settings = replace(settings, amp=Compute.of(settings.device, settings.amp).amp)
    num = len(split_indices(len(images.train), settings.seed, settings.validation)[0])
    if balance:
        schedule = schedule.balanced(num, multiple=num_processes())
    if work is not None:
        name = settings.optimizer if optimizer is None else "sgd"  # the work of an optimizer of the user's is unknown
        schedule = shared_budget(schedule.of(spec), flops, work, num, name)
        settings = replace(settings, budget=None)
    with determinism(settings.deterministic), pending_signals(SAVE):
        plan = schedule.of(spec)
        plan.flops()  # raises for a size that the network cannot take, before anything is written
        log = _listeners(run_dir, quiet, plan, settings)
        if given_weights is not None:
            start = given_weights.start(plan.configs()[0], settings.seed, log.say)
        trainer = new_trainer(plan, images, settings, run_dir, log, start, objective)
        if settings.recipe is not None:
            log.say(recipe_text(settings.recipe, asdict(schedule.levels[0]) | asdict(settings)))
        if loss and smoothing:
            log.say("note: labels are not smoothed, because the loss is your own")
        record = {
            "format": FORMAT,
            "network": spec.record(),
            "levels": [asdict(level) for level in schedule.levels],
            "settings": asdict(settings),
            "data": data if isinstance(data, str) else None,
            "data_options": options | ({"root": resolved(options["root"])} if options.get("root") else {}),
            "num_train": len(images.train),
            "init": None if start is None or start.path is None else str(start.path.resolve()),
            "weights": None if given_weights is None else given_weights.record(),
            "objective": objective.record(),
            "provenance": provenance(images),
        }
        check_record(record, run_dir / RECORD)
        with ExitStack() as held:
            if note := take_shared(run_dir, held, record):
                log.say(note)
            return finish_run(trainer, images)


@process_group()
@ordinary_tensors()
@torch.enable_grad()
def resume(
    run_dir: str | Path,
    data: Any = None,
    *,
    model: Given = None,
    root: str | Path | None = None,
    extend: Sequence[tuple[int, float]] = (),
    device: str | None = None,
    loss: Score | None = None,
    metric: Score | None = None,
    optimizer: Callable[[Iterable[nn.Parameter]], Any] | None = None,
    augment: ImageFunction | None = None,
    quiet: bool = False,
) -> Run:
    """Continue a run from its last checkpoint, or from its record; the result is the same as without the interruption.

    Args:
        data: needed where `train` was given the data themselves and not a name: the same data.
        model: needed where `train` was given a module, a function or an import path: the same one.
        root: directory where the data are now, if they have moved; their checksum must be that of the run.
        extend: (size, epochs) of levels to train after the end of a finished run, each with its own learning-rate
            cycle; batch and peak learning rate are those of the last level.
        device: another device than that of the settings, for which the results may differ in the last bits.
        loss: the loss that `train` was given, if any; likewise metric, optimizer, and a function to augment images.
        quiet: print nothing.

    Raises:
        ValueError: the directory is no run or in use by another process; data, model or functions are missing or differ
            from those of the run; a run to be extended is not finished.
        Interrupted: as in `train`.
    """
    run_dir = from_rank_zero(Path(run_dir))
    if not (run_dir / RECORD).exists():
        raise ValueError(f"run must be a directory with a {RECORD}, got {run_dir}; leave --resume out to start one")
    record, file, recorded = read_run_record(run_dir), run_dir / RECORD, recorded_data(run_dir)
    if root is not None and recorded and recorded[1].get("root") == resolved(root):
        root = None
    is_finished = (run_dir / RESULT).exists()
    if is_finished and not extend:
        if root is not None:
            raise ValueError(f"root must be left out for {run_dir}, which is finished, got {root}")
        Log(quiet=quiet or not is_rank_zero()).say(f"{run_dir} is finished; nothing to do")
        rows = read_metrics(run_dir / METRICS)
        return Run(run_dir, load(run_dir, model), read_result(run_dir), rows)
    if extend and not is_finished:
        raise ValueError(f"run must be finished to be extended, got {run_dir}; type --resume instead of --extend")
    began, settings, init = recorded_plan(record, file, model)
    settings = settings if device is None else replace(settings, device=device)
    plan = extended(began, extend)
    size = plan.image_size
    is_larger = size > began.image_size  # its checksum is then unknown
    objective = Objective(loss, metric, optimizer, augment)
    objective.check_same(record.get("objective"))
    log = _listeners(run_dir, quiet, plan, settings)
    if root is not None:
        recorded = moved_data(recorded, root, data is None)
    source, options = (data, recorded[1] if recorded else {}) if data is not None else recorded or (None, {})
    if source is None:
        raise ValueError(f"data must be given to resume {run_dir}, which was trained on data without a name")
    images = rank_zero_first(lambda: load_data(source, size=size, **options))
    if root is not None and is_larger:
        check_data(record, load_data(source, size=began.image_size, **options), count_only=False)
    check_classes(plan.configs()[0], images)
    check_data(record, images, count_only=is_larger)
    plan.flops()
    with determinism(settings.deterministic), ExitStack() as held, pending_signals(SAVE):
        if note := take_shared(run_dir, held):
            log.say(note)
        found = on_rank_zero(lambda: checkpoints_of(run_dir))
        start = read_start(init, model) if not found and init is not None else None
        if not found and (recorded_weights := record.get("weights")):
            start = WeightsFile.of_record(recorded_weights).start(plan.configs()[0], settings.seed, log.say)
        trainer = new_trainer(plan, images, settings, run_dir, log, start, objective, found)
        if root is not None:
            log.say(record_moved(images, file, options["root"]))
            record = read_record(file, RUN)
        if extend:
            origin = record.get("provenance", {}) | ({"data": data_record(images)} if is_larger else {})
            more = {"levels": [asdict(level) for level in plan.levels], "provenance": origin}
            extend_record(run_dir, {**record, **more}, len(began.levels))
        was = record["settings"].get("device")
        if device not in (None, was):
            log.say(f"note: the device is {device}, and was {was} when the run began: the last bits may differ")
        for line in differences(record.get("provenance", {})):
            log.say(f"note: {line}: the last bits may differ from an undisturbed run")
        if not found:
            log.say(f"{run_dir} has no checkpoint: starting again")
        else:
            state = trainer.state
            log.say(f"resuming {run_dir} at {state.reached(plan.levels[state.index].label)}")
        on_rank_zero(lambda: log.keep_rows(trainer.state.rows))
        return finish_run(trainer, images)


def _listeners(run_dir: Path, quiet: bool, plan: Schedule, settings: TrainSettings) -> Listeners:
    """The listeners of a run; processes other than rank zero write and print nothing."""
    if not is_rank_zero():
        return Listeners(Log(quiet=True))
    return Listeners(Log(quiet=quiet), run_dir / METRICS, trackers(run_dir, plan, settings))
