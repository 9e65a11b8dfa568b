"""``multipde bench finish``: a converted network that learns from the old one, beside what else the images could do."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from multipde.data.batches import drawn_indices
from multipde.evaluation.candidates import Evaluator
from multipde.evaluation.sizes import DataSource, images_for
from multipde.mesh.randomness import OwnRandomness
from multipde.networks.a_trous import a_trous
from multipde.networks.detail import with_detail
from multipde.networks.inputs import Normalize
from multipde.networks.model_spec import spec_of
from multipde.reports.plots import accuracy_against_images
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.runtime.table import Table
from multipde.storage.stored_network import load, network_checksum
from multipde.studies.study import Row, Study, check_names, matching, mean_and_spread
from multipde.training.budget import Budget
from multipde.training.finish import MOST_HELD_BACK, Finish, FinishSettings
from multipde.training.level import Level
from multipde.training.plan import recorded_split

ARMS: Mapping[str, Mapping[str, Any]] = {
    "answers": {},
    "answers and labels": {"label_share": 0.5},
    "labels": {"label_share": 1.0},
    "labels from scratch": {"label_share": 1.0, "learning_rate": Level.learning_rate},
}
"""What the converted network learns, as fields of `FinishSettings`; the last has random weights in the beginning."""

NUM_IMAGES = (500, 2000, 5000, 40000)

WAYS = ("copy", "calibrated", "detail", "a trous")
"""Ways of a network to another size: a map of its stencils, `with_detail` or `a_trous`; the last two upwards only."""


class Task(NamedTuple):
    """One training of the study; ``images`` is the number of different images."""

    way: str
    arm: str
    images: int
    learned: int
    seed: int


def finish_study(
    checkpoint: Path,
    data: DataSource | None,
    out: Path,
    *,
    size: int = 16,
    ways: Sequence[str] = WAYS[:1],
    arms: Sequence[str] | None = None,
    images: Sequence[int] = NUM_IMAGES,
    learned: int = 40000,
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    amp: str = "off",
    compile: bool = False,
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Convert a checkpoint, and let it learn from different numbers of images, with and without labels."""
    arms = tuple(ARMS) if arms is None else arms
    check_names("arms", arms, ARMS)
    check_names("ways", ways, WAYS)
    old = load(checkpoint)
    spec: Any = spec_of(old)
    ratio = _ratio(spec, size) if {*ways} & {*WAYS[2:]} else 1
    found = images_for(spec, checkpoint, data, max(size, spec.image_sizes[0]))
    normalize, split = Normalize.of(spec), recorded_split(checkpoint)
    evaluator = Evaluator.of(found, Compute.of(device, amp), normalize, split=split)
    shared = {"checkpoint": str(checkpoint), "sha256": network_checksum(old), "data": found.name, "size": size}
    study = Study(out, shared, Task._fields, earlier={"way": "copy"}, log=log)
    num = len(evaluator.drawable)
    tasks = [Task(way, arm, min(n, num), learned, k) for way in ways for arm in arms for n in images for k in seeds]
    left, taught = study.left(tasks, "trainings"), 0.0
    if left:
        taught = evaluator.test(evaluator.compute.place(old), spec.image_sizes[0]).accuracy
    for way in dict.fromkeys(task.way for task in left):
        new = evaluator.compute.place(_moved(old, way, size, ratio, evaluator))
        if way != "detail":  # which keeps every answer
            evaluator.recalibrate(new, size)
        before = evaluator.test(new, size).accuracy
        for task in left:
            if task.way == way:
                row = {"teacher": taught, "before": before, **_measured(old, new, evaluator, task, compile)}
                study.add(*task, **row)
                text = f"{way}, {task.arm}, {task.images:,} images, seed {task.seed}"
                study.log.say(f"{text}: {before:.2%} -> {row['accuracy']:.2%} in {row['seconds']:.0f} s")
    rows = study.rows
    drawn = [{**row, "name": row["arm"], "method": "-" if len(ways) == 1 else row["way"]} for row in rows]
    title = f"{checkpoint} at {size} pixels, test accuracy in %"
    return study.close({title: finish_table(rows)}, lambda file: accuracy_against_images(drawn, file))


def _ratio(spec: Any, size: int) -> int:
    """How many times larger the new images are, for the ways that need a whole number."""
    side = spec.image_sizes[0]
    if size <= side or size % side:
        raise ValueError(f"size must be a multiple of {side} above it for the ways {', '.join(WAYS[2:])}, got {size}")
    return size // side


def _moved(old: nn.Module, way: str, size: int, ratio: int, evaluator: Evaluator) -> nn.Module:
    """The network on images of the new size."""
    spec: Any = spec_of(old)
    if way in WAYS[2:]:
        finer = with_detail(old, spec.detail * ratio)
        return a_trous(finer) if way == "a trous" else finer
    return evaluator.plan(old, spec.image_sizes[0], size, way)(old)


def _measured(old: nn.Module, new: nn.Module, evaluator: Evaluator, task: Task, compile: bool) -> dict[str, Any]:
    """Accuracy of the converted network after the training of a task."""
    indices = evaluator.drawable[drawn_indices(len(evaluator.drawable), task.images, (task.seed, "finish"))]
    if task.arm.endswith("from scratch"):
        with OwnRandomness(task.seed):
            net = spec_of(new).build()
    else:
        net = copy.deepcopy(new)
    settings = FinishSettings(Budget(task.learned, "images"), seed=task.seed, compile=compile, **ARMS[task.arm])
    held_back = evaluator.held_back[:MOST_HELD_BACK]
    finish = Finish(net, old, evaluator.data.train, indices, held_back, evaluator.compute, settings)
    done = finish.run(keep_last=True)
    accuracy = evaluator.test(done.net, spec_of(new).image_sizes[0]).accuracy
    return {"accuracy": accuracy, "agreement": done.after, "seconds": round(done.seconds, 1)}


def finish_table(rows: Sequence[Row]) -> Table:
    """Mean and spread of the accuracies over the seeds: a row per way and number of images, a column per arm."""
    table = []
    for way, images, learned in sorted({(row["way"], row["images"], row["learned"]) for row in rows}):
        own = matching(rows, way=way, images=images, learned=learned)
        line = {"way": way, "images": f"{images:,}", "seen": f"{learned:,}"}
        line["moved"] = mean_and_spread([100 * row["before"] for row in own])
        for arm in ARMS:
            values = [100 * row["accuracy"] for row in matching(own, arm=arm)]
            line[arm] = mean_and_spread(values) if values else "-"
        table.append(line)
    return table
