"""Pairs (train, test) that the user gives in Python: torchvision-style data sets, or tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multipde.data.image_data import ImageData, channel_statistics
from multipde.data.images import TensorImages
from multipde.data.pixels import to_uint8
from multipde.data.transformed import TransformedImages, read_items, transforms_at_random

TRANSFORMS_ITSELF = (
    "the data set transforms its training images at random: they are read anew in every epoch, "
    "and flips and crops of our own are off unless asked for"
)


def load_pair(pair: Sequence[Any]) -> ImageData:
    """The `ImageData` of a pair (train, test) that the user gives.

    Training images that their data set transforms at random may have any shape, and are resized to that of the test
    images. Other training images, and all test images, are read once and kept.
    """
    test = _in_memory(pair[1], "test")
    is_random = not _is_tensors(pair[0]) and transforms_at_random(_checked(pair[0], "train"), "train")
    train = TransformedImages.read(pair[0], test.images.shape[1:]) if is_random else _in_memory(pair[0], "train")
    fixed = train.fixed if isinstance(train, TransformedImages) else train
    found, expected = tuple(fixed.images.shape[1:]), tuple(test.images.shape[1:])
    if found != expected:
        raise ValueError(f"train and test images must have one shape, got {found} and {expected}")
    labels = torch.cat([train.labels, test.labels])
    num_classes = int(labels.max()) + 1
    names = tuple(getattr(pair[0], "classes", None) or [str(k) for k in range(num_classes)])
    if labels.min() < 0 or num_classes > len(names):
        raise ValueError(f"labels must lie in 0..{len(names) - 1}, got {int(labels.min())} to {num_classes - 1}")
    notes = (TRANSFORMS_ITSELF,) if is_random else ()
    return ImageData("own", train, test, names, found[-1], *channel_statistics(train, found[-1]), notes, is_random)


def _is_tensors(part: Any) -> bool:
    return isinstance(part, (tuple, list)) and len(part) == 2 and all(isinstance(t, Tensor) for t in part)


def _checked(part: Any, which: str) -> Any:
    if not hasattr(part, "__getitem__") or not hasattr(part, "__len__"):
        raise ValueError(f"{which} must be a data set or (images, labels) tensors, got {type(part).__name__}")
    if not len(part):
        raise ValueError(f"{which} must hold images, got none")
    return part


def _in_memory(part: Any, which: str) -> TensorImages:
    """Read all images and labels of a data set into memory."""
    if _is_tensors(part):
        images, labels = part
    else:
        items = read_items(_checked(part, which), which, range(len(part)))
        found = {tuple(image.shape) for image, _ in items}
        if len(found) > 1:
            raise ValueError(f"{which} images must have one shape, got {sorted(found)[:2]}; add a Resize transform")
        images, labels = torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])
    if images.dim() < 3 or len(images) != len(labels) or not len(images):
        raise ValueError(
            f"{which} must hold images (N, C, *size) and as many labels, got {tuple(images.shape)} and {len(labels)}"
        )
    if len(set(images.shape[2:])) != 1:
        raise ValueError(f"{which} images must be square, got {tuple(images.shape[2:])}")
    if labels.is_floating_point() and bool((labels != labels.round()).any()):
        raise ValueError(f"{which} labels must be whole numbers, got {labels.tolist()[:3]}")
    return TensorImages(to_uint8(images, f"{which} images"), labels.long())
