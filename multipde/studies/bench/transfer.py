"""The study behind the defaults: which way from coarse to fine gives the most accuracy for the same work."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from multipde.data.datasets import data_label
from multipde.networks.config import NetworkConfig
from multipde.networks.presets import default_network
from multipde.runtime.console import Log
from multipde.storage.provenance import machine
from multipde.storage.records import FORMAT, read_json
from multipde.storage.rows import append_row, read_metrics
from multipde.storage.run_directory import METRICS, RECORD
from multipde.studies.trained import trained
from multipde.training.level import Level, level_flops
from multipde.training.monitor import DivergedError
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings


@dataclass(frozen=True)
class Arm:
    """One way from coarse to fine.

    Args:
        sizes: as parts of the full size, with the share of the work that is done at each.
        settings: what it changes in the settings of the training.
        mixed: the batches of all sizes in random order instead of one size after the other.
        policy: of the learning rate.
        steps: time steps at each size; None for those of the network.
    """

    sizes: tuple[tuple[float, float], ...] = ((1 / 4, 0.125), (1 / 2, 0.375), (1, 0.5))
    settings: Mapping[str, Any] = field(default_factory=dict)
    mixed: bool = False
    policy: str = "across"
    steps: tuple[int, ...] | None = None


GRADUAL = ((1 / 4, 0.06), (3 / 8, 0.07), (1 / 2, 0.19), (5 / 8, 0.15), (3 / 4, 0.14), (7 / 8, 0.15), (1, 0.24))

ARMS = {
    "fine only": Arm(((1, 1.0),), {"transfer": "copy"}),
    "copy": Arm(settings={"transfer": "copy"}),
    "rediscretize": Arm(settings={"transfer": "rediscretize"}),
    "galerkin": Arm(settings={"transfer": "galerkin"}),
    "calibrated": Arm(settings={"transfer": "calibrated"}),
    "mesh-invariant": Arm(settings={"transfer": "copy", "coordinates": "finest", "conditioning": 1.0}),
    "mixed": Arm(settings={"transfer": "copy"}, mixed=True),
    "gradual": Arm(GRADUAL, {"transfer": "calibrated"}),
    "gradual copy": Arm(GRADUAL, {"transfer": "copy"}),
}
"""The arms of the study: one cycle of the learning rate across all levels, by work."""

IDEAS = {
    "one cycle per level": Arm(settings={"transfer": "copy"}, policy="one_cycle"),
    "twice the steps": Arm(settings={"transfer": "copy"}, steps=(3, 3, 6)),
    "momentum reset": Arm(settings={"transfer": "copy", "momentum_rule": "reset"}),
    "momentum dual": Arm(settings={"transfer": "calibrated", "momentum_rule": "dual"}),
    "calibrated full": Arm(settings={"transfer": "calibrated_full"}),
    "mesh-invariant, q = 0": Arm(settings={"transfer": "copy", "coordinates": "finest", "conditioning": 0.0}),
    "mesh-invariant, q = 1/2": Arm(settings={"transfer": "copy", "coordinates": "finest", "conditioning": 0.5}),
    "rediscretize, steps auto": Arm(settings={"transfer": "rediscretize", "auto_steps": True}),
}
"""Further arms, trained where they are asked for. The last does more work than its budget where it takes more steps."""


def arm_of(name: str) -> Arm:
    """An arm or idea by its name.

    Raises:
        ValueError: there is none of that name.
    """
    known = ARMS | IDEAS
    if name not in known:
        raise ValueError(f"arms must be among {', '.join(known)}, got {name!r}")
    return known[name]


STEP = 0.05
"""Epochs are multiples of this."""


@dataclass(frozen=True)
class Task:
    """One training of the study.

    Args:
        budget: work in epochs at the full size.
    """

    arm: str
    dynamics: str = "hamiltonian"
    budget: float = 2.0
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its run directory."""
        return f"{self.arm}-{self.dynamics}-{self.budget:g}-{self.seed}".replace(" ", "-")

    def levels(self, network: NetworkConfig) -> list[Level]:
        """Levels with the work of the budget for a network at the full size."""
        arm, size = arm_of(self.arm), network.sizes[0]
        parts, steps = [], arm.steps or (None,) * len(arm.sizes)
        for (part, share), n in zip(arm.sizes, steps, strict=True):
            level = Level(round(part * size), 1)
            own = network.on_mesh(level.size)
            flops = level_flops(Level(size, 1), network) / level_flops(level, own if n is None else own.with_steps(n))
            parts.append((level.size, max(1, round(share * self.budget * flops / STEP)) * STEP))
        if not arm.mixed:
            return [Level(*part, steps=n, policy=arm.policy) for part, n in zip(parts, steps, strict=True)]
        total = sum(epochs for _, epochs in parts)
        shares = tuple((side, epochs / total) for side, epochs in parts)
        return [Level(size, total, policy="across", mixed=shares)]


def all_arms(budget: float = 2.0, seed: int = 0) -> list[Task]:
    """The first part of the study: every arm once on the Hamiltonian network."""
    return [Task(arm, budget=budget, seed=seed) for arm in ARMS]


def finalists(
    rows: Sequence[Mapping[str, Any]], budget: float = 2.0, seeds: Sequence[int] = (0, 1, 2), num: int = 2
) -> list[Task]:
    """The second part: fine only, copy and the best others of the first part, all dynamics and several seeds.

    The Hamiltonian network has the full budget, the others half of it.
    """
    found = [r for r in rows if (r["dynamics"], r["budget"], r["seed"]) == ("hamiltonian", budget, seeds[0])]
    others = [r for r in found if r["arm"] not in ("fine only", "copy")]
    best = [r["arm"] for r in sorted(others, key=lambda r: -r["test_accuracy"])[:num]]
    return [
        Task(arm, dynamics, budget if dynamics == "hamiltonian" else budget / 2, seed)
        for seed in seeds
        for dynamics in ("hamiltonian", "parabolic", "second_order", "resnet")
        for arm in ("fine only", "copy", *best)
    ]


def run_tasks(
    tasks: Sequence[Task],
    data: str,
    options: Mapping[str, Any],
    out: Path,
    *,
    size: int = 32,
    run_dir: Path = Path("runs/bench-transfer"),
    settings: TrainSettings | None = None,
    workers: int = 1,
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Train what is not in the file yet and append a row for each as it is finished.

    Args:
        tasks: in the order in which they are started.
        out: file of rows; those of the same data and size count as done.
        run_dir: where the trainings are recorded; one that was interrupted is taken up.
        workers: trainings at a time, each with its share of the processor's cores.

    Returns:
        All rows of the file that belong to these data and this size. An arm that diverges is worth chance.
    """
    log, settings = log or Log(quiet=True), settings or TrainSettings()
    label = data_label(data, options.get("root"))
    for task in tasks:  # a size that an arm cannot have is told before anything is trained
        network = default_network(data, task.dynamics, size).on_mesh(size)
        Schedule(task.levels(network), network)
    done = {_task(row) for row in _rows(out, label, size)}
    left = [task for task in dict.fromkeys(tasks) if task not in done]
    threads = torch.get_num_threads() if workers == 1 else max(1, (os.cpu_count() or 1) // workers)
    log.say(f"{len(tasks) - len(left)} of {len(tasks)} trainings are in {out}; {len(left)} to do")
    if not left:
        return _rows(out, label, size)
    arguments = [(task, data, dict(options), size, run_dir / f"{label}-{size}", settings, threads) for task in left]
    for number, (task, result) in enumerate(_results(arguments, workers), start=1):
        row = {"data": label, "size": size, **asdict(task), **result, "threads": threads}
        out.parent.mkdir(parents=True, exist_ok=True)
        append_row(out, row)
        outcome = "diverged" if "diverged" in row else f"test accuracy {row['test_accuracy']:.2%}"
        log.say(
            f"{number}/{len(left)}  {row['dynamics']}, {row['arm']}, {row['budget']:g} epochs of work, seed "
            f"{row['seed']}: {outcome}, {row['seconds'] / 60:.1f} min"
        )
    return _rows(out, label, size)


def _results(arguments: Sequence[tuple], workers: int) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Tasks with what they gave, as they are finished."""
    if workers == 1:
        for each in arguments:
            yield each[0], _run(*each)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_run, *each): each[0] for each in arguments}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()


def _run(
    task: Task,
    data: str,
    options: dict[str, Any],
    size: int,
    run_dir: Path,
    settings: TrainSettings,
    threads: int,
) -> dict[str, Any]:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    directory = run_dir / task.name
    network = default_network(data, task.dynamics, size).on_mesh(size)
    levels = task.levels(network)
    chosen = TrainSettings(**{**asdict(settings), "seed": task.seed, **arm_of(task.arm).settings})
    try:
        run = trained(directory, network, levels, data, chosen, options)
        found = {key: run.result[key] for key in ("test_accuracy", "test_loss", "flops", "seconds", "moves")}
    except DivergedError as error:
        found = _given_up(directory, str(error))
    return found | _circumstances(directory, levels, chosen)


def _given_up(directory: Path, why: str) -> dict[str, Any]:
    """What an arm that diverged is worth: chance, for the work of the epochs that it has finished."""
    classes = read_json(directory / RECORD, FORMAT)["network"]["classes"]
    last = (read_metrics(directory / METRICS) or [{"total_flops": 0.0, "total_seconds": 0.0}])[-1]
    return {
        "test_accuracy": 1 / classes,
        "test_loss": math.log(classes),
        "flops": last["total_flops"],
        "seconds": last["total_seconds"],
        "moves": [],
        "diverged": why,
    }


def _circumstances(directory: Path, levels: Sequence[Level], settings: TrainSettings) -> dict[str, Any]:
    return {
        "curve": [
            [row["size"], row["total_flops"], row["validation_accuracy"]] for row in read_metrics(directory / METRICS)
        ],
        "levels": [[level.size, round(level.epochs or 0, 4)] for level in levels],
        "settings": asdict(settings),
        "torch": torch.__version__,
        "machine": f"{machine()['processor']}, {os.cpu_count()} cores",
    }


def _task(row: Mapping[str, Any]) -> Task:
    return Task(row["arm"], row["dynamics"], row["budget"], row["seed"])


def _rows(out: Path, label: str, size: int) -> list[dict[str, Any]]:
    return [row for row in read_metrics(out) if row["data"] == label and row["size"] == size]
