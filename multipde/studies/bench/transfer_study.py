"""``multipde bench transfer``: the accuracy of different ways to train from coarse to fine, for the same work."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multipde.data.datasets import ImageData, data_label, load_data
from multipde.evaluation.sizes import DataSource
from multipde.networks.dynamics import check_dynamics
from multipde.networks.inputs import Normalize
from multipde.networks.presets import default_network
from multipde.runtime.console import Log
from multipde.studies.bench.airbench import PUBLISHED
from multipde.studies.bench.equal_work import Budget, checked_budget, work_text
from multipde.studies.bench.transfer_arms import ALL, ARMS, RECIPES
from multipde.studies.bench.transfer_figure import accuracy_against_work
from multipde.studies.bench.transfer_tables import tables
from multipde.studies.bench.transfer_tasks import Task, finalists, tasks_of
from multipde.studies.study import Study, check_names
from multipde.studies.trainings import add_trainings, measured_training, num_training_images, threads_of
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
    recipes: Sequence[str] = ("sgd",),
    budget: Budget = 2.0,
    run_dir: Path = Path("runs/bench-transfer"),
    workers: int = 1,
    device: str = "auto",
    amp: str = "off",
    compile: bool = False,
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Train all arms once on the Hamiltonian network, then the best ones, fine only and copy with every dynamics.

    Args:
        data: name for `load_data`, and its options.
        recipes: names in `RECIPES`; the first part of the study uses only the first one.
    """
    for name in dynamics:
        check_dynamics(name, 2)
    check_names("recipes", recipes, RECIPES)
    check_names("arms", arms or (), ALL)
    threads = threads_of(workers)
    budget, seeds = checked_budget(budget, 0.25 if small else 1.0), seeds[:2] if small else seeds
    for name in dynamics:  # a size that an arm cannot have is refused before anything is trained
        base = default_network(data[0], name, size).on_mesh(size)
        for task in tasks_of(tuple(arms or ARMS), (name,), budget, (0,), recipes):
            Schedule(task.levels(base, 1000), task.network(base))
    label = data_label(data[0], data[1].get("root"))
    study = Study(out, {"data": label, "size": size}, Task._fields, earlier={"recipe": "sgd"}, log=log)
    settings, place = TrainSettings(device=device, amp=amp, compile=compile), run_dir / f"{label}-{size}"
    train = partial(_train, data=data, size=size, run_dir=place, settings=settings, threads=threads)

    def add(tasks: Sequence[Task]) -> None:
        add_trainings(study, tasks, train, workers, _text)

    if arms is None:
        add(tasks_of(tuple(ARMS), ("hamiltonian",), budget, seeds[:1], recipes[:1]))
        arms = finalists(study.rows, budget, seeds[0], recipes[0])
        dynamics = ("hamiltonian", "parabolic", "second_order", "resnet")
    add(tasks_of(arms, dynamics, budget, seeds, recipes))
    published = PUBLISHED if label == "cifar10" and size == 32 else ()
    return study.close(tables(study.rows), lambda file: accuracy_against_work(study.rows, file, published))


def _text(task: Task) -> str:
    return f"{task.dynamics}, {task.arm}, {work_text(task.budget)}, seed {task.seed}, recipe {task.recipe}"


def _train(
    task: Task, data: DataSource, size: int, run_dir: Path, settings: TrainSettings, threads: int
) -> dict[str, Any]:
    base, images = default_network(data[0], task.dynamics, size).on_mesh(size), load_data(data[0], size=size, **data[1])
    network, settings = task.network(base, _normalised(images, size)), replace(settings, **task.settings)
    levels = task.levels(base, num_training_images(images, settings))
    return measured_training(run_dir / task.name, network, levels, data, settings, threads)


def _normalised(images: ImageData, size: int, num: int = 5000) -> Tensor:
    """The first training images, normalised."""
    part = images.train.take(torch.arange(min(num, len(images.train))))
    (found,) = part.batches([(size, torch.arange(len(part)))], torch.device("cpu"))
    return Normalize.of(images)(found[0])
