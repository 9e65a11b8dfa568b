"""The trainings of a study: each is a row, whether it ends or diverges, and several may run at the same time."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from multipde.data.datasets import ImageData, split_indices
from multipde.networks.cost import num_weights
from multipde.networks.model_spec import ModelSpec
from multipde.runtime.spawning import spawning
from multipde.storage.rows import read_metrics
from multipde.storage.run_directory import METRICS, read_run_record
from multipde.studies.study import Study, Task
from multipde.studies.trained import trained
from multipde.training.level import Level
from multipde.training.monitor import DivergedError
from multipde.training.settings import TrainSettings

RESULTS = ("test_accuracy", "test_loss", "flops", "seconds", "moves")


def add_trainings(
    study: Study, tasks: Sequence[Task], train: Callable[[Task], dict[str, Any]], workers: int, name: Callable
) -> None:
    """Do the trainings that the study does not have, and add a row for each as it is finished.

    Args:
        train: the function that does a training and returns the values of its row.
        workers: number of simultaneous trainings.
        name: the text by which a task is called on the screen.
    """
    left = study.left(tasks, "trainings")
    for number, (task, result) in enumerate(_results(left, train, workers), start=1):
        row = study.add(*task, **result)
        outcome = "diverged" if "diverged" in row else f"test accuracy {row['test_accuracy']:.2%}"
        study.log.say(f"{number}/{len(left)}  {name(task)}: {outcome}, {row['seconds'] / 60:.1f} min")


def _results(
    tasks: Sequence[Task], train: Callable[[Task], dict[str, Any]], workers: int
) -> Iterator[tuple[Task, dict[str, Any]]]:
    if workers == 1 or not tasks:
        yield from ((task, train(task)) for task in tasks)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        with spawning():
            futures = {pool.submit(train, task): task for task in tasks}
        yield from ((futures[future], future.result()) for future in as_completed(futures))
    finally:
        pool.shutdown(cancel_futures=True)


def _size(level: Level) -> int | str:
    """The size of a level in a row; text where the images have another size than the mesh."""
    return level.size if level.label == str(level.size) else level.label


def num_training_images(images: ImageData, settings: TrainSettings) -> int:
    """Number of the images of a data set that a training uses."""
    return len(split_indices(len(images.train), settings.seed, settings.validation)[0])


def threads_of(workers: int) -> int:
    """Number of threads of each of several workers, which share the CPU cores; ValueError for less than one worker."""
    if workers < 1:
        raise ValueError(f"workers must be positive, got {workers}")
    return torch.get_num_threads() if workers == 1 else max(1, (os.cpu_count() or 1) // workers)


def measured_training(
    directory: Path,
    network: ModelSpec,
    levels: Sequence[Level],
    data: tuple[Any, Mapping[str, Any]],
    settings: TrainSettings,
    threads: int,
    **start: Any,
) -> dict[str, Any]:
    """The values of a row for one training, which is continued if it was interrupted.

    Args:
        data: data and data_options as in `train`.
        start: what `train` is given besides, such as weights.

    A training that diverges counts as random guessing, with the work of its finished epochs.
    """
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    try:
        done = trained(directory, network, levels, data[0], settings, data[1], **start)
        found = {key: done.result[key] for key in RESULTS} | {"weights": num_weights(done.model)}
    except DivergedError as error:
        classes = read_run_record(directory)["network"]["classes"]
        last = (read_metrics(directory / METRICS) or [{"total_flops": 0.0, "total_seconds": 0.0}])[-1]
        found = {"test_accuracy": 1 / classes, "test_loss": math.log(classes), "flops": last["total_flops"]}
        found |= {"seconds": last["total_seconds"], "moves": [], "diverged": str(error)}
    rows = read_metrics(directory / METRICS)
    return found | {
        "curve": [[row["size"], row["total_flops"], row["validation_accuracy"]] for row in rows],
        "levels": [[_size(level), round(level.epochs or 0, 4)] for level in levels],
        "settings": asdict(settings),
        "threads": threads,
    }
