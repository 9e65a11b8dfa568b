"""``multipde bench transfer``: the accuracy of different ways to train from coarse to fine, for the same work."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from multipde.data.datasets import data_label
from multipde.evaluation.sizes import DataSource
from multipde.networks.dynamics import DYNAMICS
from multipde.networks.presets import default_network
from multipde.reports.plots import accuracy_against_work
from multipde.runtime.console import Log
from multipde.storage.records import FORMAT, read_json
from multipde.storage.rows import read_metrics
from multipde.storage.run_directory import METRICS, RECORD
from multipde.studies.bench.transfer_arms import ARMS, Task, arm_of, finalists, tasks_of
from multipde.studies.bench.transfer_tables import tables
from multipde.studies.study import Study
from multipde.studies.trained import trained
from multipde.training.monitor import DivergedError
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings


def transfer_study(
    data: DataSource,
    out: Path,
    *,
    size: int = 32,
    small: bool = False,
    arms: Sequence[str] | None = None,
    dynamics: Sequence[str] = ("hamiltonian",),
    seeds: Sequence[int] = (0, 1, 2),
    budget: float = 2.0,
    run_dir: Path = Path("runs/bench-transfer"),
    workers: int = 1,
    device: str = "auto",
    amp: str = "off",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Train all arms once on the Hamiltonian network, then the best ones, fine only and copy with every dynamics.

    Args:
        data: name for `load_data`, and its options.
        out: file of rows; a training with a row is not repeated. The figure is written to the same directory.
        small: use a quarter of the work, and two seeds.
        arms: train only these arms, with the given dynamics and seeds; None as described above.
        budget: work of every training in epochs at the full size; half of it for other dynamics than hamiltonian.
        run_dir: directory of the trainings; one that was interrupted is continued.
        workers: number of simultaneous trainings, each with its share of the CPU cores.
    """
    for name in dynamics:
        if name not in DYNAMICS:
            raise ValueError(f"dynamics must be one of {', '.join(DYNAMICS)}, got {name!r}")
    if not (math.isfinite(budget) and budget > 0):
        raise ValueError(f"budget must be positive, got {budget}")
    if workers < 1:
        raise ValueError(f"workers must be positive, got {workers}")
    if small:
        budget, seeds = budget / 4, seeds[:2]
    for name in dynamics:  # a size that an arm cannot have is refused before anything is trained
        network = default_network(data[0], name, size).on_mesh(size)
        for arm in arms or ARMS:
            Schedule(Task(arm, name, budget).levels(network), network)
    label = data_label(data[0], data[1].get("root"))
    study = Study(out, {"data": label, "size": size}, Task._fields, log=log)
    threads = torch.get_num_threads() if workers == 1 else max(1, (os.cpu_count() or 1) // workers)
    settings, place = TrainSettings(device=device, amp=amp), run_dir / f"{label}-{size}"
    train = partial(_train, data=data, size=size, run_dir=place, settings=settings, threads=threads)
    if arms is None:
        _add_trainings(study, tasks_of(tuple(ARMS), ("hamiltonian",), budget, seeds[:1]), train, workers)
        arms, dynamics = finalists(study.rows, budget, seeds[0]), ("hamiltonian", "parabolic", "second_order", "resnet")
    _add_trainings(study, tasks_of(arms, dynamics, budget, seeds), train, workers)
    return study.close(tables(study.rows), lambda file: accuracy_against_work(study.rows, file))


def _add_trainings(study: Study, tasks: Sequence[Task], train: Callable[[Task], dict[str, Any]], workers: int) -> None:
    """Do the trainings that the study does not have, and add a row for each as it is finished."""
    left = study.left(tasks, "trainings")
    for number, (task, result) in enumerate(_results(left, train, workers), start=1):
        row = study.add(*task, **result)
        outcome = "diverged" if "diverged" in row else f"test accuracy {row['test_accuracy']:.2%}"
        name = f"{task.dynamics}, {task.arm}, {task.budget:g} epochs of work, seed {task.seed}"
        study.log.say(f"{number}/{len(left)}  {name}: {outcome}, {row['seconds'] / 60:.1f} min")


def _results(
    tasks: Sequence[Task], train: Callable[[Task], dict[str, Any]], workers: int
) -> Iterator[tuple[Task, dict[str, Any]]]:
    if workers == 1 or not tasks:
        yield from ((task, train(task)) for task in tasks)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        futures = {pool.submit(train, task): task for task in tasks}
        yield from ((futures[future], future.result()) for future in as_completed(futures))
    finally:
        pool.shutdown(cancel_futures=True)


def _train(
    task: Task, data: DataSource, size: int, run_dir: Path, settings: TrainSettings, threads: int
) -> dict[str, Any]:
    """The result of one training; one that diverges counts as random guessing, with the work of its finished epochs."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    directory, network = run_dir / task.name, default_network(data[0], task.dynamics, size).on_mesh(size)
    levels = task.levels(network)
    settings = replace(settings, seed=task.seed, **arm_of(task.arm).settings)
    try:
        result = trained(directory, network, levels, data[0], settings, data[1]).result
        found = {key: result[key] for key in ("test_accuracy", "test_loss", "flops", "seconds", "moves")}
    except DivergedError as error:
        classes = read_json(directory / RECORD, FORMAT)["network"]["classes"]
        last = (read_metrics(directory / METRICS) or [{"total_flops": 0.0, "total_seconds": 0.0}])[-1]
        found = {"test_accuracy": 1 / classes, "test_loss": math.log(classes), "flops": last["total_flops"]}
        found |= {"seconds": last["total_seconds"], "moves": [], "diverged": str(error)}
    metrics = read_metrics(directory / METRICS)
    return found | {
        "curve": [[row["size"], row["total_flops"], row["validation_accuracy"]] for row in metrics],
        "levels": [[level.size, round(level.epochs or 0, 4)] for level in levels],
        "settings": asdict(settings),
        "threads": threads,
    }
