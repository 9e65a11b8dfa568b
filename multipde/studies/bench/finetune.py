"""``multipde bench finetune``: accuracy of a converted network against the number of images of its fine-tuning."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from multipde.data.datasets import ImageData
from multipde.evaluation.candidates import Evaluator
from multipde.evaluation.sizes import DataSource, images_for
from multipde.networks.inputs import Normalize
from multipde.networks.model_spec import spec_of
from multipde.reports.plots import accuracy_against_images
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.runtime.table import table_of
from multipde.storage.stored_network import load, network_checksum, save
from multipde.studies.study import Study
from multipde.studies.trainings import num_training_images
from multipde.training.level import Level
from multipde.training.plan import recorded_split
from multipde.training.run import train
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings

RECALIBRATION = (32, 128, 512, 2048, 8192)
"""Numbers of images on which BatchNorm is recalibrated."""

EPOCHS = (0.05, 0.1, 0.25, 0.5, 1.0)
"""Epochs of fine-tuning; the learning rate falls from a fifth of its usual peak."""

SCRATCH = (1.0, 3.0)
"""Epochs of the baseline, which is trained at the new size from random weights."""


def finetune_study(
    checkpoint: Path,
    data: DataSource | None,
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
    """Convert a checkpoint, train it on more and more images, and compare with a network trained at that size.

    Args:
        recalibration: numbers of images on which only BatchNorm is recalibrated.
        epochs, scratch: numbers of epochs of fine-tuning, and of the training from random weights.
    """
    net = load(checkpoint)
    spec: Any = spec_of(net)
    spec.on_mesh(size)
    if spec.detail > 1:
        raise ValueError(f"checkpoint must have detail 1, got {spec.detail}; type multipde convert --detail 1 first")
    images = images_for(spec, checkpoint, data, max(size, *spec.sizes))
    seed, validation = recorded_split(checkpoint)
    settings = TrainSettings.of_recipe("paper", seed=seed, validation=validation, device=device, amp=amp)
    shared = {"checkpoint": str(checkpoint), "sha256": network_checksum(net), "data": images.name, "size": size}
    study = Study(out, shared, ("name", "method", "amount"), log=log)
    plan = [("recalibrated", method, float(n)) for method in methods for n in recalibration]
    plan += [("fine-tuned", method, e) for method in methods for e in epochs]
    plan += [("from scratch", "-", e) for e in scratch]
    num = num_training_images(images, settings)
    for name, method, amount in study.left(plan, "measurements"):
        seen = min(num, int(amount)) if name == "recalibrated" else round(amount * num)
        accuracy = _accuracy(net, images, size, name, method, amount, settings)
        study.add(name, method, amount, images=seen, accuracy=accuracy)
        study.log.say(f"{name}, {method}, {seen:,} images: {accuracy:.2%}")
    rows = study.rows
    table = table_of(rows, "name: {name} | method: {method} | images: {images:,} | accuracy: {accuracy:.2%}")
    return study.close({f"{checkpoint} at {size} pixels": table}, lambda file: accuracy_against_images(rows, file))


def _accuracy(
    net: nn.Module, data: ImageData, size: int, name: str, method: str, amount: float, settings: TrainSettings
) -> float:
    spec: Any = spec_of(net)
    if name != "recalibrated":
        is_new = name == "from scratch"
        rate, policy = (0.1, "one_cycle") if is_new else (0.02, "cool_down")
        level = Level(size, amount, learning_rate=rate, policy=policy)
        chosen = replace(settings, transfer="copy" if is_new else method)
        with tempfile.TemporaryDirectory() as place:
            init = None if is_new else save(net, Path(place) / "net")
            config = spec.on_mesh(size) if is_new else None
            run = train(config, Schedule([level]), data, Path(place) / "run", settings=chosen, init=init, quiet=True)
        return run.result["test_accuracy"]
    compute, split = Compute.of(settings.device, settings.amp), (settings.seed, settings.validation)
    evaluator = Evaluator.of(data, compute, Normalize.of(spec), split=split)
    new = compute.place(evaluator.plan(compute.place(net), spec.sizes[0], size, method)(net))
    evaluator.recalibrate(new, size, int(amount))
    return evaluator.test(new, size).accuracy
