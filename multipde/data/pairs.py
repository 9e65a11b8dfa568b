"""Pairs (train, test) that the user gives in Python: torchvision-style data sets, or images with their labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from multipde.data.image_data import ImageData, channel_statistics, range_notes
from multipde.data.images import TensorImages
from multipde.data.labels import class_names, image_and_label, plain_label, same_names, whole_labels
from multipde.data.pixels import batch_pixels, stack
from multipde.data.transformed import TransformedImages, read_items, transforms_at_random

TRANSFORMS_ITSELF = (
    "the data set transforms its training images at random: they are read anew in every epoch, "
    "and flips and crops of our own are off unless asked for"
)


def load_pair(pair: Sequence[Any]) -> ImageData:
    """The `ImageData` of a pair (train, test) that the user gives.

    Each is a data set, or its images and labels as a pair or as a dictionary: tensors, arrays or lists. Where both name
    their classes, these must be the same. Training images that their data set transforms at random may have any shape,
    and are resized to that of the test images. Other training images, and all test images, are read once and kept.
    """
    parts = [_checked(part, which) for part, which in zip(pair, ("train", "test"), strict=True)]
    given = [class_names(part, which) for part, which in zip(parts, ("train", "test"), strict=True)]
    names = same_names(list(zip(given, ("train", "test"), strict=True)))
    if names is None and (names := _names_in(parts[0])) is not None and not _labelled_by_name(parts[1]):
        rule = "train and test labels must both be names or both be numbers where a data set names no classes"
        raise ValueError(f"{rule}, got names for train and others for test")
    test = _in_memory(parts[1], "test", names)
    is_random = not _is_whole(parts[0]) and transforms_at_random(parts[0], "train", names)
    drawing: list[int] = []
    train = None if is_random else _in_memory(parts[0], "train", names, drawing)
    if train is None or drawing:  # of items that the first one is not like, as images of a rare class may be
        is_random, train = True, TransformedImages.read(parts[0], test.images.shape[1:], names)
    fixed = train.fixed if isinstance(train, TransformedImages) else train
    found, expected = tuple(fixed.images.shape[1:]), tuple(test.images.shape[1:])
    if found != expected:
        raise ValueError(f"train and test images must have one shape, got {found} and {expected}")
    if names is None:
        names = tuple(str(k) for k in range(int(torch.cat([train.labels, test.labels]).max()) + 1))
    notes = [*([TRANSFORMS_ITSELF] if is_random else []), *range_notes(fixed, found[-1])]
    statistics = channel_statistics(train, found[-1])
    return ImageData("own", train, test, names, found[-1], *statistics, tuple(notes), is_random)


def _is_whole(part: Any) -> bool:
    """Whether these are all images with their labels: two tensors, arrays or lists, and not two items of a data set."""
    if isinstance(part, Mapping):
        return True
    if not isinstance(part, (tuple, list)) or len(part) != 2:
        return False
    if getattr(part[0], "ndim", 0) > 2:
        return True
    if any(isinstance(each, Mapping) for each in part):
        return False
    return all(hasattr(each, "__array__") or isinstance(each, (tuple, list)) for each in part) and not _is_item(part[1])


def _is_item(entry: Any) -> bool:
    """Whether an entry is an image with its label, rather than a list of labels."""
    is_pair = isinstance(entry, (tuple, list)) and len(entry) == 2
    return is_pair and (isinstance(entry[0], Image.Image) or getattr(entry[0], "ndim", 0) > 1)


def _checked(part: Any, which: str) -> Any:
    """A data set, or a pair of all images and labels; ValueError for anything else."""
    if isinstance(part, DataLoader):
        raise ValueError(f"{which} must be a data set, got a DataLoader; type loader.dataset")
    if isinstance(part, IterableDataset) or (hasattr(part, "__iter__") and not hasattr(part, "__getitem__")):
        raise ValueError(
            f"{which} must be a data set whose images can be read in any order, got {type(part).__name__}, which "
            "gives one after the other; collect them in two lists (images, labels)"
        )
    if not hasattr(part, "__getitem__") or not hasattr(part, "__len__") or isinstance(part, (str, bytes)):
        raise ValueError(f"{which} must be a data set or (images, labels) tensors, got {type(part).__name__}")
    if _is_whole(part):
        return image_and_label(part, which)
    if isinstance(part, (Tensor, np.ndarray)):
        raise ValueError(f"{which} must be a pair (images, labels), got the images alone")
    try:
        is_empty = len(part) == 0
    except TypeError as error:
        raise ValueError(f"{which} must be a data set with a length, got {error}") from None
    if is_empty:
        raise ValueError(f"{which} must hold images, got none")
    return part


def _names_in(part: Any) -> tuple[str, ...] | None:
    """The names among the labels of a pair (images, labels), sorted; None for numbers."""
    if not _is_whole(part) or not isinstance(part[1], (list, tuple, np.ndarray)):
        return None
    labels = list(np.asarray(part[1]).flat) if isinstance(part[1], np.ndarray) else part[1]
    return tuple(sorted(map(str, set(labels)))) if labels and all(isinstance(each, str) for each in labels) else None


def _labelled_by_name(part: Any) -> bool:
    """Whether the labels of a data set, of which the first is asked, or of a pair (images, labels) are names."""
    if _is_whole(part):
        return _names_in(part) is not None
    return isinstance(plain_label(image_and_label(part[0], "test")[1]), str)


def _in_memory(part: Any, which: str, names: tuple[str, ...] | None, drawing: list[int] | None = None) -> TensorImages:
    """Read all images and labels of a data set into memory; the indices of those that are drawn at random are added."""
    if _is_whole(part):
        images, labels = batch_pixels(part[0], f"{which} images"), whole_labels(part[1], names, which)
    else:
        items = read_items(part, which, range(len(part)), names, drawing=drawing)
        images = stack([image for image, _ in items], f"{which} images")
        labels = torch.tensor([label for _, label in items])
    if images.dim() < 3 or len(images) != len(labels) or 0 in images.shape:
        raise ValueError(
            f"{which} must hold images (N, C, *size) and as many labels, got {tuple(images.shape)} and {len(labels)}"
        )
    if len(set(images.shape[2:])) != 1:
        raise ValueError(f"{which} images must be square, got {tuple(images.shape[2:])}")
    return TensorImages(images, labels)
