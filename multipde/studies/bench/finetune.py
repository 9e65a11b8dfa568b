"""How much a converted network must see again: accuracy against images of recalibration and of fine-tuning."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from multipde.data.batches import Normalize
from multipde.data.datasets import ImageData, load_data, split_indices
from multipde.evaluation.candidates import Evaluator
from multipde.evaluation.metrics import check_classes
from multipde.networks.network import PDENet
from multipde.reports.plots import accuracy_against_images
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.storage.network import load, save
from multipde.storage.rows import append_row, read_metrics
from multipde.storage.run_directory import recorded_data
from multipde.training.level import Level
from multipde.training.plan import recorded_split
from multipde.training.run import train
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings

RECALIBRATION = (32, 128, 512, 2048, 8192)
"""Images on which BatchNorm is measured anew."""

EPOCHS = (0.05, 0.1, 0.25, 0.5, 1.0)
"""Of fine-tuning, with a learning rate that falls from a fifth of its usual peak."""

SCRATCH = (1.0, 3.0)
"""Epochs of the rival, trained at the new size from random weights."""


def finetune_study(
    checkpoint: Path | None,
    data: tuple[Any, Mapping[str, Any]] | None,
    out: Path,
    *,
    size: int = 16,
    methods: Sequence[str] = ("copy", "calibrated"),
    recalibration: Sequence[int] = RECALIBRATION,
    epochs: Sequence[float] = EPOCHS,
    scratch: Sequence[float] = SCRATCH,
    device: str = "auto",
    amp: str = "off",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Convert a checkpoint, show it more and more images, and compare with a network trained at that size.

    Args:
        checkpoint: a run or a network that `save` wrote.
        data: source and options for `load_data`; those of the run where left out.
        out: file of rows, appended to; what it has is not done again. The figure lies beside it.

    Returns:
        The rows of the file that belong to this checkpoint, these data and this size.

    Raises:
        ValueError: no checkpoint, no data, a size that the network cannot have.
    """
    log = log or Log(quiet=True)
    if checkpoint is None:
        raise ValueError("checkpoint must be given to be fine-tuned, got None; type --checkpoint DIR")
    net = load(checkpoint)
    net.config.on_mesh(size)
    source = data or recorded_data(checkpoint)
    if source is None:
        raise ValueError(f"data must be given for {checkpoint}, which does not name its own; type --data NAME")
    images = load_data(source[0], size=max(size, *net.config.sizes), **source[1])
    check_classes(net.config, images)
    seed, validation = recorded_split(checkpoint)
    settings = TrainSettings(seed=seed, validation=validation, device=device, amp=amp)
    own = {"checkpoint": str(checkpoint), "data": images.name, "size": size}
    done = {(r["name"], r["method"], r["amount"]) for r in _rows(out, own)}
    plan = [("recalibrated", method, float(n)) for method in methods for n in recalibration]
    plan += [("fine-tuned", method, e) for method in methods for e in epochs]
    plan += [("from scratch", "-", e) for e in scratch]
    for name, method, amount in plan:
        if (name, method, amount) in done:
            continue
        num = len(split_indices(len(images.train), seed, validation)[0])
        row = own | {
            "name": name,
            "method": method,
            "amount": amount,
            "images": min(num, int(amount)) if name == "recalibrated" else round(amount * num),
            "accuracy": _accuracy(net, images, size, name, method, amount, settings),
            "torch": torch.__version__,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        append_row(out, row)
        log.say(f"{name}, {method}, {row['images']:,} images: {row['accuracy']:.2%}")
    rows = _rows(out, own)
    log.table([_row(r) for r in rows], f"{checkpoint} at {size} pixels")
    accuracy_against_images(rows, out.with_suffix(".svg"))
    log.say(f"rows in {out}, figure in {out.with_suffix('.svg')}")
    return rows


def _accuracy(
    net: PDENet, data: ImageData, size: int, name: str, method: str, amount: float, settings: TrainSettings
) -> float:
    """Test accuracy of one row."""
    if name != "recalibrated":
        is_new = name == "from scratch"
        level = Level(
            size, amount, learning_rate=0.1 if is_new else 0.02, policy="one_cycle" if is_new else "cool_down"
        )
        chosen = replace(settings, transfer="copy" if is_new else method)
        with tempfile.TemporaryDirectory() as place:
            init = None if is_new else save(net, Path(place) / "net")
            config = net.config.on_mesh(size) if is_new else None
            run = train(config, Schedule([level]), data, Path(place) / "run", settings=chosen, init=init, quiet=True)
        return run.result["test_accuracy"]
    compute, split = Compute.of(settings.device, settings.amp), (settings.seed, settings.validation)
    evaluator = Evaluator.of(data, compute, Normalize.of(net.config), split=split)
    new = compute.place(evaluator.plan(compute.place(net), net.config.sizes[0], size, method)(net))
    evaluator.recalibrate(new, size, int(amount))
    return evaluator.test(new, size).accuracy


def _rows(out: Path, own: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [r for r in read_metrics(out) if all(r[key] == value for key, value in own.items())]


def _row(r: Mapping[str, Any]) -> dict[str, str]:
    return {
        "name": r["name"],
        "method": r["method"],
        "images": f"{r['images']:,}",
        "accuracy": f"{r['accuracy']:.2%}",
    }
