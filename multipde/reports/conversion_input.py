"""What every form of ``multipde convert`` is given: the network, the images, the finish and the new directory."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from multipde.conversions.state_dict import network_with_weights
from multipde.data.datasets import split_indices
from multipde.data.image_data import ImageData, channel_statistics
from multipde.data.images import ImageSet
from multipde.data.unlabelled import load_unlabelled
from multipde.evaluation.candidates import Evaluator
from multipde.evaluation.metrics import check_classes
from multipde.evaluation.sizes import DataSource
from multipde.networks.external import IMAGENET
from multipde.networks.inputs import Normalize
from multipde.networks.model_spec import ModelSpec, spec_of
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.storage.provenance import tested_images
from multipde.storage.run_directory import check_new
from multipde.storage.stored_network import load
from multipde.training.budget import Budget
from multipde.training.finish import FinishSettings, answers, finish_budget
from multipde.training.plan import recorded_split

LONGEST = 120.0
"""Seconds after which a finish that ends by itself is ended."""


@dataclass(frozen=True)
class ConversionInput:
    """The arguments of a conversion that do not depend on the new size.

    Args:
        source: a checkpoint, or a state dict file; None for a network by name.
        out: the new directory.
        arch: a network by name, see `external_model`; with a checkpoint of such a network, the same again.
        weights: state dict file for ``arch``.
        from_size: image side for which ``arch`` or the state dict was trained; a checkpoint has its own.
        normalize: mean and std for ``arch``, those of ``"imagenet"`` or of the ``"data"``; of ImageNet if None.
        data: source and options for `load_data`; None for a conversion without measurements.
        need_data: whether data that cannot be read are an error; otherwise a line is printed and they are left out.
        num_images: number of test images, and of images held back to choose the method.
        finish: how long the old network teaches the converted one, see `finish_budget`; ``"none"`` for not at all.
        unlabelled: folder of images, with or without classes, from which it learns; those of the data if left out.
        skip_bad: leave out those of them that cannot be decoded.
        compile: use compiled kernels for the finish.
        device, amp: device and precision, as in `evaluate`.
    """

    source: Path | None
    out: Path | None
    arch: str | None = None
    weights: Path | None = None
    from_size: int = 224
    normalize: str | None = None
    data: DataSource | None = None
    need_data: bool = True
    num_images: int = 2000
    finish: str = "auto"
    unlabelled: Path | None = None
    skip_bad: bool = False
    compile: bool = False
    device: str = "auto"
    amp: str = "off"

    def budget(self) -> Budget | None:
        """The budget of the finish, None without one; ValueError where the arguments contradict each other."""
        if self.out is None:
            raise ValueError("out must be given; type --out DIR")
        check_new(self.out)
        budget = None if self.finish in ("auto", "none") else finish_budget(self.finish)
        if self.unlabelled is not None and self.finish == "none":
            raise ValueError(f"images must come with a finish, got {self.unlabelled}; type --finish auto")
        if self.weights is not None and self.source is not None:
            raise ValueError(f"weights must come with --arch alone, got {self.weights}; type --arch resnet18, or DIR")
        return budget

    def network(self) -> nn.Module:
        """The old network; one by name has the normalisation of ImageNet unless that of the data is wanted."""
        if self.source is not None:
            return load(self.source, self.arch)
        mean, std = ((), ()) if self.normalize == "data" else IMAGENET
        return network_with_weights(self.arch or "", self.weights, size=self.from_size, mean=mean, std=std)

    def images(self, old: nn.Module, side: int, compute: Compute, log: Log) -> tuple[ImageData | None, ImageSet | None]:
        """The images on which a conversion is measured, and others from which it learns; None where there are none.

        Where only unlabelled images are given, the answers of the old network are their labels. Where data cannot be
        read and need not be, a line says so.
        """
        images = other = None
        if self.data is not None:
            try:
                images = tested_images(self.data, side, self.source)
            except ValueError as error:
                if self.need_data:
                    raise
                log.say(f"the data of the run cannot be read ({error})")
            else:
                check_classes(spec_of(old), images)
                for note in images.skipped.notes(len(images.train) + len(images.test)) + images.enlarged([side]):
                    log.say(f"note: {note}")
        if self.unlabelled is not None:
            other = load_unlabelled(self.unlabelled, side, self.skip_bad)
            if images is None:
                images, other = taught_data(old, other, self.unlabelled.name, compute), None
                log.say("the images have no labels: accuracy is the agreement with the old network")
        return images, other

    def evaluator(self, spec: ModelSpec, images: ImageData, compute: Compute) -> Evaluator:
        """The evaluator of networks on the images, with the split of the training where it is known."""
        split = recorded_split(self.source)
        return Evaluator.of(images, compute, Normalize.of(spec), split=split, num_images=self.num_images)

    def settings(self, budget: Budget | None, **others: Any) -> FinishSettings:
        """The settings of the finish, with the seed of the training where it is known."""
        seed, _ = recorded_split(self.source)
        longest = math.inf if budget else LONGEST
        return FinishSettings(budget, longest=longest, seed=seed, compile=self.compile, **others)


def taught_data(old: nn.Module, images: ImageSet, name: str, compute: Compute) -> ImageData:
    """Images with the answers of a network in place of labels; a fifth of them are test images.

    Accuracy on these data is agreement with the network.
    """
    spec = spec_of(old)
    images.labels = answers(compute.place(old), images, None, compute).cpu()
    names = spec.class_names or tuple(f"class {k}" for k in range(spec.classes))
    train, test = (images.take(part) for part in split_indices(len(images), 0))
    side = spec.image_sizes[0]
    return ImageData(f"{name}, unlabelled", train, test, names, side, *channel_statistics(train, side))
