"""Classes of unequal size: their weights in the loss, and the sampling that makes them equally frequent."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multipde.data.images import stream


def weights_of_classes(weights: Sequence[float] | str, labels: Tensor, classes: int) -> Tensor:
    """The weight of each class (classes,) in the loss, in float32.

    Balanced weights are N / (C N_c) for N_c of N images in class c of C, with which all classes weigh the same; the
    mean of the weights of all images is then one. A class without images weighs nothing.

    Args:
        labels: those of the training images (N,).

    Raises:
        ValueError: there is not one weight per class.
    """
    if isinstance(weights, str):
        counts = torch.bincount(labels.cpu(), minlength=classes)
        found = torch.where(counts > 0, len(labels) / (classes * counts.clamp_min(1)), 0.0)
        return found.float()
    if len(weights) != classes:
        raise ValueError(f"class_weights must have an entry for each of the {classes} classes, got {len(weights)}")
    return torch.tensor(weights, dtype=torch.float32)


def balanced_indices(indices: Tensor, labels: Tensor, key: tuple[int | str, ...]) -> Tensor:
    """As many indices as are given, with numbers of every class that differ by at most one, drawn at random.

    The images of a class are taken in random orders, one after the other: none is seen k + 1 times before all of its
    class have been seen k times. Which classes have one image more is drawn, too.

    Args:
        indices: indices of the training images (N,).
        labels: labels of all images.
        key: name of the random stream.
    """
    generator, own = stream(*key, "balance"), labels.cpu()[indices]
    present = own.unique()
    present = present[torch.randperm(len(present), generator=generator)]
    found = []
    for i, label in enumerate(present):
        members = indices[own == label]
        num = len(indices) * (i + 1) // len(present) - len(indices) * i // len(present)
        orders = [torch.randperm(len(members), generator=generator) for _ in range(-(-num // len(members)))]
        found.append(members[torch.cat(orders)[:num]] if orders else members[:0])
    return torch.cat(found)
