"""``multipde bench ablation``: what each ingredient of the recipe fast is worth, left out or added to SGD alone."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from multipde.data.datasets import data_label, load_data
from multipde.evaluation.sizes import DataSource
from multipde.networks.presets import default_network
from multipde.runtime.console import Log
from multipde.runtime.table import Row, Table
from multipde.studies.bench.equal_work import LEVEL_FIELDS, Budget, budget_text, checked_budget, levels_of_work
from multipde.studies.bench.transfer_arms import COPY, Arm, Part
from multipde.studies.study import Study, check_names, matching, mean_and_spread
from multipde.studies.trainings import add_trainings, measured_training, num_training_images, threads_of
from multipde.training.optimizers import WEIGHT_DECAY
from multipde.training.recipe import PLAIN, recipe_values
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings

COARSE = Arm((Part(1 / 4, 0.4), Part(1 / 2, 0.6)))
DETAIL = Arm((Part(1 / 4, 0.1), Part(1 / 2, 0.3), Part(1 / 2, 0.6, detail=2)))

NONE: Mapping[str, Any] = {
    **COPY,
    **PLAIN,
    "weight_decay": 0.0,
    "precise_images": 0,
    "augment": "off",
}
"""SGD with momentum and the penalty of the paper, and no ingredient."""

FULL: Mapping[str, Any] = {
    **NONE,
    "weight_decay": WEIGHT_DECAY["muon"],
    "precise_images": TrainSettings.precise_images,
    "augment": "flip,crop",
    **recipe_values("fast"),
}
"""All ingredients; where the recipe fast says something else, that."""

INGREDIENTS: Mapping[str, tuple[str, ...]] = {
    "optimizer": ("optimizer", "momentum", "nesterov", "stencil_rate", "stencil_momentum", "learning_rate"),
    "detail level": (),
    "label smoothing": ("label_smoothing",),
    "whitening": ("whiten",),
    "decay": ("weight_decay",),
    "precise statistics": ("precise_images",),
    "augmentation": ("augment",),
}
"""The fields of `TrainSettings` and `Level` of each ingredient; the detail level is one of the levels instead."""

PENALTY = ("alpha1", "alpha2")
"""The weights of the penalty (13), the only ingredient of SGD that the full recipe leaves out."""

SGD_DECAY = 5e-4
"""Decay of the stencils with SGD, where that of orthogonalised stencils would be far too large."""


class Variant(NamedTuple):
    """Values of `TrainSettings` and `Level`, and the levels."""

    values: Mapping[str, Any]
    arm: Arm


def _all_variants() -> dict[str, Variant]:
    """All trainings by name: the full recipe, each ingredient left out, SGD alone, each ingredient added to it."""
    found = {"full recipe": Variant(FULL, DETAIL)}
    for name, keys in INGREDIENTS.items():
        left = {key: value for key, value in FULL.items() if key not in keys}
        left |= {key: NONE[key] for key in keys if key in NONE}
        if name == "optimizer" and left["weight_decay"]:
            left["weight_decay"] = SGD_DECAY
        found[f"without {name}"] = Variant(left, COARSE if name == "detail level" else DETAIL)
    penalty = {key: NONE[key] for key in PENALTY}
    found["full recipe with penalty"] = Variant({**FULL, **penalty}, DETAIL)
    found["sgd"] = Variant(NONE, COARSE)
    for name, keys in INGREDIENTS.items():
        added = {**NONE, **{key: FULL[key] for key in keys if key in FULL}}
        if name == "decay":
            added["weight_decay"] = SGD_DECAY
        found[f"sgd with {name}"] = Variant(added, DETAIL if name == "detail level" else COARSE)
    found["sgd without penalty"] = Variant({**NONE, **dict.fromkeys(PENALTY, 0.0)}, COARSE)
    return found


VARIANTS = _all_variants()


class Task(NamedTuple):
    """One training of the study."""

    variant: str
    budget: Budget
    seed: int


def ablation_study(
    data: DataSource,
    out: Path,
    *,
    size: int = 32,
    variants: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    budget: Budget = "10TFLOPs",
    run_dir: Path = Path("runs/bench-ablation"),
    workers: int = 1,
    device: str = "auto",
    amp: str = "off",
    compile: bool = False,
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Train the Hamiltonian network on meshes of at most half the size with each ingredient left out or added."""
    check_names("variants", variants or (), VARIANTS)
    threads, budget = threads_of(workers), checked_budget(budget)
    base = default_network(data[0], size=size).on_mesh(size)
    for variant in VARIANTS.values():  # a size that the network cannot have is refused before anything is trained
        Schedule(levels_of_work(variant.arm, base, base, budget, 1000, variant.values), base).flops()
    label = data_label(data[0], data[1].get("root"))
    study = Study(out, {"data": label, "size": size, "network": base.label}, Task._fields, log=log)
    study.rows = [row for row in study.rows if _is_current(row)]
    place, settings = run_dir / f"{label}-{size}", {"device": device, "amp": amp, "compile": compile}
    train = partial(_train, data=data, size=size, run_dir=place, settings=settings, threads=threads)
    tasks = [Task(name, budget, seed) for seed in seeds for name in variants or VARIANTS]
    add_trainings(study, tasks, train, workers, lambda task: f"{task.variant}, {budget_text(budget)}, seed {task.seed}")
    budgets = dict.fromkeys(row["budget"] for row in study.rows)
    return study.close({f"work of {budget_text(b)}": ablation_table(matching(study.rows, budget=b)) for b in budgets})


def _is_current(row: Row) -> bool:
    """Whether the settings of a row are those that its variant has now; the recipe may have changed since."""
    settings, variant = row["settings"], VARIANTS.get(row["variant"])
    return variant is not None and all(settings[k] == v for k, v in variant.values.items() if k in settings)


def _train(
    task: Task, data: DataSource, size: int, run_dir: Path, settings: Mapping[str, Any], threads: int
) -> dict[str, Any]:
    variant, base = VARIANTS[task.variant], default_network(data[0], size=size).on_mesh(size)
    own = {key: value for key, value in variant.values.items() if key not in LEVEL_FIELDS}
    wanted, images = TrainSettings(**{**own, **settings}, seed=task.seed), load_data(data[0], size=size, **data[1])
    num = num_training_images(images, wanted)
    levels = levels_of_work(variant.arm, base, base, task.budget, num, variant.values)
    name = f"{task.variant}-{budget_text(task.budget)}-{task.seed}".replace(" ", "-")
    return measured_training(run_dir / name, base, levels, data, wanted, threads)


def ablation_table(rows: Sequence[Row]) -> Table:
    """Mean accuracy and its standard error, and the difference to the full recipe and to SGD with the same seeds."""
    table = []
    for name in VARIANTS:
        own = matching(rows, variant=name)
        if not own:
            continue
        line = {"variant": name, "seeds": str(len(own))}
        line["accuracy %"] = mean_and_spread([100 * row["test_accuracy"] for row in own], of_mean=True)
        for other in ("full recipe", "sgd"):
            reference = {row["seed"]: row["test_accuracy"] for row in matching(rows, variant=other)}
            gains = [100 * (r["test_accuracy"] - reference[r["seed"]]) for r in own if r["seed"] in reference]
            line[f"over {other}"] = mean_and_spread(gains, sign=True, of_mean=True) if gains and name != other else "-"
        line["TFLOPs"] = f"{statistics.mean(row['flops'] for row in own) / 1e12:.1f}"
        table.append(line | {"minutes": f"{statistics.mean(row['seconds'] for row in own) / 60:.1f}"})
    return table
