"""``multipde reproduce``: trains the networks of the paper's table and figures, and writes their rows and figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multipde.data.batches import drawn_indices
from multipde.data.datasets import ImageData, load_data
from multipde.data.feed import Feed
from multipde.data.images import Batch, stream
from multipde.evaluation.metrics import evaluate_batches, scored_batches
from multipde.networks.cost import num_weights
from multipde.networks.inputs import Normalize
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.runtime.table import Row, Table, table_of
from multipde.studies.paper.experiment_cost import COLUMNS as COST
from multipde.studies.paper.experiment_cost import cost_rows
from multipde.studies.paper.paper_figures import FIGURES
from multipde.studies.paper.recipes import (
    DYNAMICS,
    FAST,
    RECIPES,
    REPORTED,
    SHARES,
    Training,
    num_held_back,
    paper_budget,
    trainings_of,
)
from multipde.studies.study import Study, check_names
from multipde.studies.trained import trained
from multipde.training.finished_run import Run
from multipde.training.schedule import level_flops

EXPERIMENTS = {
    "table1": ("stl10", "cifar10", "cifar100"),
    "fig1": ("stl10",),
    "fig2": ("stl10",),
    "fig3": ("stl10",),
    "fig4": ("cifar10", "cifar100"),
}
"""What can be reproduced, and the data sets of the paper for it."""

NUM_SHOWN = 4
"""Number of test images in Figure 1."""

COLUMNS = """name: {data}, {dynamics} | weights: {weights:,} | train: {num_train:,} | test: {num_test:,}
    | epochs: {epochs} | of the paper's work: {share:.1%} | accuracy %: {percent:.1f} | loss: {test_loss:.3f}
    | paper %: {paper[0]} | paper loss: {paper[1]} | minutes: {minutes:.1f}"""


@dataclass(frozen=True)
class PaperData:
    """A data set of the paper, which may be reduced to a budget; source and options are those of `train`.

    The source is a name if the data set is complete, so that a run can find its data again.
    """

    images: ImageData
    source: Any
    options: Mapping[str, Any]

    def part(self, training: Training, seed: int) -> Any:
        """The data of one training: all images, or a random share of them; a larger share contains a smaller one."""
        if training.share is None:
            return self.source
        num = len(self.images.train)
        order = torch.randperm(num, generator=stream(seed, "share"))[: training.num_images(num)]
        return replace(self.images, train=self.images.train.take(order))


def reproduce(
    experiment: str,
    *,
    data: Sequence[str] | None = None,
    dynamics: Sequence[str] | None = None,
    root: str | Path = "data",
    download: bool = False,
    recipe: str = "paper",
    budget: str = "hour",
    epochs: int | None = None,
    plan: bool = False,
    run_dir: Path = Path("runs/reproduce"),
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    amp: str = "off",
    compile: bool = False,
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Repeat an experiment of the paper: train the networks that are missing, print a table, write rows and a figure.

    Args:
        experiment: ``"table1"``, ``"fig1"``, ``"fig2"``, ``"fig3"`` or ``"fig4"``.
        data: some of ``"stl10"``, ``"cifar10"``, ``"cifar100"``; None for those of the paper.
        dynamics: some of ``"parabolic"``, ``"hamiltonian"``, ``"second_order"``; None for all.
        root: directory with a data set as ``root/NAME/{train,test}/CLASS/*``, as ``root/{train,test}/CLASS/*``, or as
            torchvision stores it.
        download: download data sets that are missing.
        recipe: ``"paper"``, or ``"fast"`` for trainings from coarse to fine with at most a fifth of the paper's work.
        budget: ``"full"`` for the paper's epochs and images, or that fifth; ``"hour"`` for about an hour per data set
            on two cores with bf16, ``"smoke"`` for a minute or two; or the work of each training, ``"30TFLOPs"``, of
            which the paper's recipe takes no more than the paper did.
        epochs: largest number of epochs of a training with the paper's recipe; None for that of the budget.
        plan: only measure and print what the trainings cost.
        run_dir: directory of the trainings, in a folder per budget; one that was interrupted is continued.
        out: directory of rows and figure; None for the folder of the budget in run_dir.
        seed: seed of weights, validation split, augmentation and of the images that are shown.
        device, amp: device and precision, as in `evaluate`.
        compile: use compiled kernels while training, see `compile_layers`.
        log: where progress and tables are printed; None prints nothing.

    Returns:
        A row per training with accuracy and loss on the test images, number of epochs, and validation accuracy of every
        epoch; for fig3 also the confusion matrix, for fig1 the probabilities for the images that are shown. With
        ``plan`` a row per training with its work and minutes.

    Raises:
        ValueError: experiment, budget, data set or dynamics is unknown, epochs is not positive, or data are missing.

    Reference: Ruthotto & Haber (2018), section 5.
    """
    if experiment not in EXPERIMENTS:
        raise ValueError(f"experiment must be one of {', '.join(EXPERIMENTS)}, got {experiment!r}")
    if recipe not in ("paper", FAST):
        raise ValueError(f"recipe must be paper or {FAST}, got {recipe!r}")
    if recipe == FAST and epochs is not None:
        raise ValueError(f"epochs must be left out with recipe {FAST}, got {epochs}; type --budget 30TFLOPs")
    limits = paper_budget(budget)
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be positive, got {epochs}")
    limits = replace(limits, epochs=epochs)
    folder = budget if epochs is None else f"{budget}-{epochs}"
    where = run_dir / (f"{recipe}-{folder}" if recipe == FAST else folder)
    names = tuple(dict.fromkeys(data or EXPERIMENTS[experiment]))
    check_names("data", names, RECIPES)
    networks = tuple(dict.fromkeys(dynamics or DYNAMICS))
    check_names("dynamics", networks, DYNAMICS)
    sets = {name: paper_data(name, Path(root), download, budget, experiment) for name in names}
    file = (out or where) / ("-".join((experiment, *names, where.name)) + ".jsonl")
    shared, compute = {"recipe": recipe, "budget": folder, "seed": seed}, Compute.of(device, amp)
    study = Study(file, shared, ("data", "dynamics", "share"), replaces=True, log=log)
    trainings = trainings_of(names, recipe, networks) if experiment != "fig3" else []
    trainings += trainings_of(names, recipe, networks, SHARES) if experiment in ("fig2", "fig3") else []
    nums = {name: len(sets[name].images.train) for name in names}
    if not study.log.quiet or plan:
        cost = cost_rows(trainings, nums, limits, compute, compile, where)
        study.log.table(table_of(cost, COST), f"{experiment}, recipe {recipe}, budget {folder}: cost")
        if plan:
            return cost
    for training in trainings:
        images, num = sets[training.data].images, nums[training.data]
        study.log.say(f"{training.name}:")
        run = trained(
            where / training.name,
            training.network,
            training.levels(limits, num),
            sets[training.data].part(training, seed),
            training.settings(num, seed, device, amp, compile),
            sets[training.data].options,
            num_train=training.num_images(num),
            quiet=study.log.quiet or training.share is not None,
        )
        row: dict[str, Any] = {
            "weights": num_weights(run.model),
            "num_train": training.num_images(num) - num_held_back(num),
            "num_validation": num_held_back(num),
            "num_test": len(images.test),
            "epochs": len(run.metrics),
            **{key: run.result[key] for key in ("test_accuracy", "test_loss", "seconds", "flops")},
            "curve": [epoch["validation_accuracy"] for epoch in run.metrics],
        }
        if experiment == "fig1":
            row |= _shown(run, images, seed, compute)
        if experiment == "fig3":
            tested = evaluate_batches(run.model, _batches(run, images, None, compute), compute)
            row["confusion"] = tested.confusion.tolist()
        study.add(training.data, training.dynamics, training.share, **row)
    shown = {f"{experiment}, recipe {recipe}, budget {folder}, seed {seed}": table(study.rows)}
    draw, sets_shown = FIGURES.get(experiment), {name: sets[name].images for name in names}
    return study.close(shown, draw and (lambda file: draw(study.rows, sets_shown, file)))


def paper_data(name: str, root: Path, download: bool, budget: str, experiment: str = "table1") -> PaperData:
    """Load a data set from one of the directories in which it may be, reduced to the budget."""
    places = [path for path in (root / name, root) if (path / "train").is_dir()]
    size = Training(name, "parabolic").network.sizes[0]
    source = "folder" if places else name
    options: dict[str, Any] = {"root": places[0]} if places else {"root": root, "download": download}
    try:
        images = load_data(source, size=size, **options)
    except ValueError as error:
        if places or download:
            raise
        command = f"multipde reproduce {experiment} --data {name} --root {root} --download"
        raise ValueError(f"data must be there, got no {name} in {root} ({error}); fetch it with {command}") from None
    limits = paper_budget(budget)
    if limits.num_train is None and limits.num_test is None:
        return PaperData(images, source, options)
    train = images.train.take(drawn_indices(len(images.train), limits.num_train, (0, "budget", "train")))
    test = images.test.take(drawn_indices(len(images.test), limits.num_test, (0, "budget", "test")))
    images = replace(images, train=train, test=test)
    return PaperData(images, images, {})


def table(rows: Sequence[Row]) -> Table:
    """The table of test accuracy and cross entropy, with the values of Table 1 where the paper has them."""
    shown = []
    for row in rows:
        reported = REPORTED[row["data"], row["dynamics"]] if row["share"] is None else None
        paper = (f"{reported[0]:.1f}", f"{reported[1]:.3f}") if reported else ("-", "-")
        full = Training(row["data"], row["dynamics"])
        whole = RECIPES[row["data"]].epochs * row["num_train"] * level_flops(full.level(1), full.network)
        other = {"share": row["flops"] / whole, "minutes": row["seconds"] / 60, "paper": paper}
        shown.append({**row, **other, "percent": 100 * row["test_accuracy"]})
    return table_of(shown, COLUMNS)


def _shown(run: Run, images: ImageData, seed: int, compute: Compute) -> dict[str, Any]:
    """A few random test images: their indices, their classes, and the probabilities of all classes."""
    chosen = drawn_indices(len(images.test), NUM_SHOWN, (seed, "shown"))
    ((scores, labels),) = scored_batches(run.model, _batches(run, images, chosen, compute), compute)
    return {"shown": chosen.tolist(), "classes": labels.tolist(), "probabilities": scores.softmax(1).tolist()}


def _batches(run: Run, images: ImageData, indices: Tensor | None, compute: Compute) -> Iterator[Batch]:
    """Normalised batches of test images for the network of a run, which is moved to the device."""
    config = compute.place(run.model).config
    return Feed(images.test, Normalize.of(config), compute).evaluation(indices, config.image_sizes[0])
