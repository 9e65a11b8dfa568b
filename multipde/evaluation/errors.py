"""A trained network before the test images: what it takes for what, and where it is most wrong."""

import io
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multipde.data.batches import Normalize, drawn_indices
from multipde.data.datasets import ImageData
from multipde.data.feed import Feed
from multipde.data.images import ImageSet
from multipde.evaluation.metrics import check_classes, confusion_matrix, scored_batches
from multipde.networks.model_spec import spec_of
from multipde.runtime.device import Compute
from multipde.stability.energy import StateEnergy, state_energies

ENERGY_IMAGES = 64


@dataclass(frozen=True)
class Mistake:
    """A test image that the network takes for something else.

    Args:
        true: number of its class.
        taken: number of the class that the network sees.
        probability: that the network gives to what it sees.
        picture: PNG, at the size of the network.
    """

    true: int
    taken: int
    probability: float
    picture: bytes


@dataclass(frozen=True)
class Examination:
    """What test images tell about a network.

    Args:
        confusion: see `Metrics`.
        mistakes: those with the largest cross entropy, the worst first.
        energies: along some images, see `state_energies`.
    """

    confusion: Tensor
    mistakes: list[Mistake]
    energies: list[StateEnergy]

    @property
    def num_images(self) -> int:
        """How many were seen."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of them whose class has the highest score."""
        return self.confusion.trace().item() / self.num_images


def examine(
    net: nn.Module, images: ImageData, compute: Compute, *, num_images: int | None = None, num_mistakes: int = 24
) -> Examination:
    """Show a network the test images.

    Args:
        num_images: only so many, drawn at random but always the same; None for all.
        num_mistakes: at most so many are kept.
    """
    spec = spec_of(net)
    check_classes(spec, images)
    size, test, key = spec.sizes[0], images.test, (0, "test")
    feed = Feed(test, Normalize.of(spec), compute)
    indices = drawn_indices(len(test), num_images, key).sort().values
    columns: list[Tensor] = []
    for scores, labels in scored_batches(compute.place(net), feed.evaluation(indices, size), compute):
        probability, predicted = scores.softmax(1).max(1)
        loss = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
        columns.append(torch.stack([labels.double(), predicted.double(), probability.double(), loss.double()]).cpu())
    labels, predicted, probability, loss = torch.cat(columns, 1)
    labels, predicted = labels.long(), predicted.long()
    wrong = (labels != predicted).nonzero()[:, 0]
    worst = wrong[loss[wrong].argsort(descending=True)[:num_mistakes]]
    pictures = _pictures(test, indices[worst], size)
    mistakes = [
        Mistake(int(labels[i]), int(predicted[i]), float(probability[i]), picture)
        for i, picture in zip(worst, pictures, strict=True)
    ]
    some = torch.cat(list(feed.drawn(None, ENERGY_IMAGES, size, key)))
    confusion = confusion_matrix(labels, predicted, spec.classes)
    return Examination(confusion, mistakes, state_energies(net, some) if spec.has_energy else [])


def _pictures(images: ImageSet, indices: Tensor, size: int) -> list[bytes]:
    """Images as PNG files; of other than one or three channels, their mean."""
    from PIL import Image

    found = []
    for batch, _ in images.batches([(size, part) for part in indices.split(250)], torch.device("cpu")):
        for x in batch.round().clamp(0, 255).byte():
            shown = x.permute(1, 2, 0) if len(x) == 3 else x.float().mean(0).byte()
            file = io.BytesIO()
            Image.fromarray(shown.numpy()).save(file, "PNG")
            found.append(file.getvalue())
    return found
