"""``multipde bench pretrained``: weights that are fine-tuned on small images first, beside the full size at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from multipde.data.batches import drawn_indices
from multipde.data.datasets import ImageData, data_label, load_data
from multipde.evaluation.sizes import DataSource
from multipde.runtime.console import Log
from multipde.runtime.table import Row, Table
from multipde.storage.tensors import MODEL
from multipde.studies.bench.plain_networks import half_resnet18_model
from multipde.studies.bench.transfer_arms import Part
from multipde.studies.bench.transfer_figure import accuracy_against_work
from multipde.studies.study import Study, check_names, matching, mean_and_spread
from multipde.studies.trained import trained
from multipde.studies.trainings import add_trainings, measured_training, num_training_images, threads_of
from multipde.training.budget import parse_budget
from multipde.training.level import Level
from multipde.training.plan import shared_budget
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings

FULL, TWO = (Part(1, 1),), (Part(1 / 2, 0.4), Part(1, 0.6))
PRETRAINING = (Part(1 / 2, 0.3), Part(1 / 2, 0.3, detail=2), Part(1, 0.4))
"""The levels of the pretraining, whose work is mostly that of small images, too."""


@dataclass(frozen=True)
class Arm:
    """One way to learn a data set.

    Args:
        parts: the levels.
        is_pretrained: start from the weights, not at random.
        settings: fields of `TrainSettings` that it changes.
    """

    parts: tuple[Part, ...]
    is_pretrained: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)


RATES = ("head=0.1", "body=0.03")
"""Peak learning rates of what is new and of what is pretrained."""

ARMS = {
    "full size": Arm(FULL, settings={"rate": RATES}),
    "coarse to fine": Arm(TWO, settings={"rate": RATES}),
    "detail": Arm((Part(1 / 2, 0.2), Part(1 / 2, 0.3, detail=2), Part(1, 0.5)), settings={"rate": RATES}),
    "full size, from scratch": Arm(FULL, is_pretrained=False),
    "coarse to fine, from scratch": Arm(TWO, is_pretrained=False),
}
"""The arms of the study. Stencils are copied, as they are wherever weights are taken for images of another size."""


class Task(NamedTuple):
    """One training of the study."""

    data: str
    size: int
    budget: str
    seed: int
    arm: str


def pretrained_study(
    data: DataSource,
    out: Path,
    *,
    pretrain: DataSource,
    size: int = 32,
    pretrain_size: int = 32,
    pretrain_budget: str = "30TFLOPs",
    budgets: Sequence[str] = ("3TFLOPs",),
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    test_images: int = 2000,
    batch: int = 64,
    run_dir: Path = Path("runs/bench-pretrained"),
    device: str = "auto",
    amp: str = "off",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Pretrain half of a ResNet-18 on one data set, and fine-tune it on another in several ways for the same work.

    Args:
        data, pretrain: names for `load_data`, and their options; what is learned, and what the weights learned before.
    """
    arms = tuple(ARMS) if arms is None else arms
    check_names("arms", arms, ARMS)
    for text in (pretrain_budget, *budgets):
        if parse_budget(text).unit != "flops":
            raise ValueError(f"budget must be in FLOPs such as 3TFLOPs, got {text}")
    base = TrainSettings(device=device, amp=amp, transfer="copy", precise_images=500, calibration_images=500)
    before, label = (data_label(name, options.get("root")) for name, options in (pretrain, data))
    shared = {"pretrained": before, "pretrain_budget": pretrain_budget, "pretrain_size": pretrain_size}
    shared |= {"batch": batch, "test_images": test_images}
    earlier, threads = {"batch": 64, "test_images": 2000}, threads_of(1)
    study = Study(out, shared, Task._fields, earlier=earlier, log=log)
    place = run_dir / f"{before}-{pretrain_size}-{pretrain_budget}"
    tasks = [Task(label, size, text, seed, arm) for text in budgets for seed in seeds for arm in arms]
    wanted = ((pretrain, pretrain_size), (data, size)) if study.missing(tasks) else ()
    sets = [_loaded(source, side, test_images) for source, side in wanted]  # errors come before anything is said

    @cache
    def prepared() -> tuple[ImageData, float]:
        """The images to be learned, and the accuracy of the pretrained network, which is trained where it is not."""
        images, learned = sets
        settings = replace(base, validation=_share(images))
        model = half_resnet18_model(pretrain_size, len(images.class_names))
        levels = _levels(PRETRAINING, model, pretrain_budget, images, settings, Level.batch)
        run = trained(place, model, levels, images, settings, quiet=False)
        return learned, run.result["test_accuracy"]

    def train(task: Task) -> dict[str, Any]:
        (images, accuracy), arm = prepared(), ARMS[task.arm]
        network = half_resnet18_model(size, len(images.class_names))
        settings = replace(base, seed=task.seed, validation=_share(images), **arm.settings)
        levels = _levels(arm.parts, network, task.budget, images, settings, batch)
        start = {"weights": place / MODEL, "from_size": pretrain_size} if arm.is_pretrained else {}
        directory = run_dir / "-".join(str(part).replace(", ", "-").replace(" ", "_") for part in task)
        row = measured_training(directory, network, levels, (images, {}), settings, threads, **start)
        return {"pretrained_accuracy": accuracy} | row

    add_trainings(study, tasks, train, 1, lambda task: ", ".join(map(str, task)))
    return study.close(_tables(study.rows), lambda file: _figure(study.rows, file))


def _loaded(source: DataSource, size: int, test_images: int) -> ImageData:
    """The data set with at most so many test images, always the same ones."""
    images = load_data(source[0], size=size, **source[1])
    chosen = drawn_indices(len(images.test), test_images, (0, "test images"))
    return replace(images, test=images.test.take(chosen.sort().values))


def _share(images: ImageData) -> float:
    """The share of the training images that is held back for validation: a tenth, or 1,000 images."""
    return min(0.1, 1000 / len(images.train))


def _levels(
    parts: Sequence[Part], network: Any, budget: str, images: ImageData, settings: TrainSettings, batch: int
) -> tuple[Level, ...]:
    """The levels of an arm, of whole batches, whose work with that of the optimizer equals the budget."""
    size = network.sizes[0]
    levels = [Level(round(part.size * size), 1, detail=part.detail, batch=batch) for part in parts]
    num, shares = num_training_images(images, settings), [part.share for part in parts]
    flops = parse_budget(budget).amount
    return shared_budget(Schedule(levels, network), flops, shares, num, settings.optimizer).levels


def _tables(rows: Sequence[Row]) -> dict[str, Table]:
    """For each data set, the mean and the spread of the accuracies over the seeds, and the gain over the full size."""
    result: dict[str, Table] = {}
    for data, size in dict.fromkeys((row["data"], row["size"]) for row in rows):
        own, table = matching(rows, data=data, size=size), []
        for budget in sorted({row["budget"] for row in own}, key=lambda text: parse_budget(text).amount):
            for arm in ARMS:
                if not (found := matching(own, budget=budget, arm=arm)):
                    continue
                rival = "full size" if ARMS[arm].is_pretrained else "full size, from scratch"
                full = {r["seed"]: r["test_accuracy"] for r in matching(own, budget=budget, arm=rival)}
                gains = [100 * (r["test_accuracy"] - full[r["seed"]]) for r in found if r["seed"] in full]
                line = {"budget": budget, "arm": arm, "seeds": str(len(found))}
                line["accuracy %"] = mean_and_spread([100 * r["test_accuracy"] for r in found])
                line["gain over full size"] = "-" if arm == rival or not gains else mean_and_spread(gains, sign=True)
                line["TFLOPs"] = f"{sum(r['flops'] for r in found) / len(found) / 1e12:.2f}"
                table.append(line)
        result[f"{rows[0]['pretrained']} to {data} at {size} pixels"] = table
    return result


def _figure(rows: Sequence[Row], file: Path) -> None:
    """Accuracy against work: a panel for each data set, a line for each arm."""
    shown = {"recipe": "own", "curve": []}  # all arms have the same recipe
    drawn = [{**row, **shown, "dynamics": f"{row['data']}, {row['size']} pixels"} for row in rows]
    accuracy_against_work(sorted(drawn, key=lambda row: [*ARMS].index(row["arm"])), file)
