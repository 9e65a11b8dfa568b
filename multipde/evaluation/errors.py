"""The errors of a trained network on test images: its confusion matrix and its worst mistakes."""

import io
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multipde.data.batches import drawn_indices
from multipde.data.datasets import ImageData
from multipde.data.feed import Feed
from multipde.data.images import ImageSet
from multipde.evaluation.metrics import Metrics, check_classes, evaluate_batches
from multipde.networks.inputs import Normalize
from multipde.networks.model_spec import spec_of
from multipde.runtime.device import Compute
from multipde.stability.energy import StateEnergy, state_energies

ENERGY_IMAGES, MISTAKES = 64, 24


@dataclass(frozen=True)
class Mistake:
    """A test image that the network classifies wrongly.

    Args:
        true: index of its true class.
        taken: index of the class that the network predicts.
        probability: probability that the network gives to the predicted class.
        picture: the image at the size of the network's images, as a PNG file.
    """

    true: int
    taken: int
    probability: float
    picture: bytes


@dataclass(frozen=True)
class Examination:
    """The errors of a network on test images.

    Args:
        metrics: accuracy, confusion matrix and reliability on them.
        mistakes: the wrongly classified images with the largest cross entropy, the largest first.
        energies: energy of the features along time, see `state_energies`, for a few of the images.
    """

    metrics: Metrics
    mistakes: list[Mistake]
    energies: list[StateEnergy]


def examine(net: nn.Module, images: ImageData, compute: Compute, *, num_images: int | None = None) -> Examination:
    """Measure the errors of a network on all test images of a data set, or on a fixed random subset of them."""
    spec = spec_of(net)
    check_classes(spec, images)
    size, test, key = spec.image_sizes[0], images.test, (0, "test")
    feed = Feed(test, Normalize.of(spec), compute)
    indices = drawn_indices(len(test), num_images, key).sort().values
    columns: list[Tensor] = []

    def keep(scores: Tensor, labels: Tensor) -> None:
        probability, predicted = scores.softmax(1).max(1)
        loss = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
        columns.append(torch.stack([labels.double(), predicted.double(), probability.double(), loss.double()]).cpu())

    batches = feed.evaluation(indices, size)
    metrics = evaluate_batches(compute.place(net), batches, compute, classes=spec.classes, keep=keep)
    labels, predicted, probability, loss = torch.cat(columns, 1)
    labels, predicted = labels.long(), predicted.long()
    wrong = (labels != predicted).nonzero()[:, 0]
    worst = wrong[loss[wrong].argsort(descending=True)[:MISTAKES]]
    pictures = _pictures(test, indices[worst], size)
    mistakes = [
        Mistake(int(labels[i]), int(predicted[i]), float(probability[i]), picture)
        for i, picture in zip(worst, pictures, strict=True)
    ]
    some = torch.cat(list(feed.drawn(None, ENERGY_IMAGES, size, key)))
    return Examination(metrics, mistakes, state_energies(net, some) if spec.has_energy else [])


def _pictures(images: ImageSet, indices: Tensor, size: int) -> list[bytes]:
    """Images as PNG files; the mean over channels unless there are one or three of them."""
    from PIL import Image

    found = []
    for batch, _ in images.batches([(size, part) for part in indices.split(250)], torch.device("cpu")):
        for x in batch.round().clamp(0, 255).byte():
            shown = x.permute(1, 2, 0) if len(x) == 3 else x.float().mean(0).byte()
            file = io.BytesIO()
            Image.fromarray(shown.numpy()).save(file, "PNG")
            found.append(file.getvalue())
    return found
