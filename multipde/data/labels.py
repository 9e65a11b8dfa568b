"""Labels of images as the whole numbers of their classes, the names of the classes, and the entries of an item."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multipde.networks.inputs import IMAGE_KEYS
from multipde.networks.model_spec import distinct

LABEL_KEYS = ("label", "labels", "target", "targets")
"""Names of the labels in an item or a batch that is a dictionary."""
MANY_CLASSES = 10**6
"""Labels from this number on are refused."""


def image_and_label(item: Any, name: str) -> tuple[Any, Any]:
    """The two entries of an item or a batch, a pair or a dictionary with one image entry and one label entry."""
    if isinstance(item, Mapping):
        images, labels = ([key for key in keys if key in item] for keys in (IMAGE_KEYS, LABEL_KEYS))
        if len(images) == len(labels) == 1:
            return item[images[0]], item[labels[0]]
        got = ", ".join(str(key) for key in item) or "no entries"
        raise ValueError(f"{name} must have one entry {IMAGE_KEYS[0]!r} and one {LABEL_KEYS[0]!r}, got {got}")
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    got = f"{len(item)} entries" if isinstance(item, (tuple, list)) else type(item).__name__
    raise ValueError(f"{name} must be a pair (image, label) or a dictionary with these entries, got {got}")


def class_names(data_set: Any, which: str) -> tuple[str, ...] | None:
    """The names of the classes in the order of the labels, as a data set gives them in ``classes``; None without them.

    Parts and concatenations of data sets have the names of the whole.
    """
    while not hasattr(data_set, "classes") and hasattr(data_set, "dataset"):
        data_set = data_set.dataset
    if hasattr(data_set, "datasets"):
        return same_names([(class_names(part, which), f"{which} set {i}") for i, part in enumerate(data_set.datasets)])
    features = getattr(data_set, "features", None)
    if isinstance(features, Mapping):
        return next((tuple(features[key].names) for key in LABEL_KEYS if hasattr(features.get(key), "names")), None)
    names, index = getattr(data_set, "classes", None), getattr(data_set, "class_to_idx", None)
    if names is None:
        return None
    if isinstance(names, (str, Mapping)) or not isinstance(names, Sequence | np.ndarray) or not len(names):
        raise ValueError(f"{which} classes must be a list of names in the order of the labels, got {str(names)[:60]!r}")
    firsts = [name[0] if isinstance(name, (tuple, list)) else name for name in names]  # ImageNet has synonyms
    for number, name in enumerate(firsts):
        if isinstance(index, Mapping) and index.get(name, number) != number and firsts.count(name) == 1:
            raise ValueError(
                f"{which} classes must be in the order of the labels, got {name!r} at {number}, "
                f"where class_to_idx has {index[name]}"
            )
    return distinct([", ".join(map(str, name)) if isinstance(name, (tuple, list)) else str(name) for name in names])


def same_names(named: Sequence[tuple[tuple[str, ...] | None, str]]) -> tuple[str, ...] | None:
    """The class names on which all those agree that have any; ValueError with the first difference."""
    known = [(names, which) for names, which in named if names is not None]
    for names, which in known[1:]:
        if names != known[0][0]:
            raise ValueError(
                f"{known[0][1]} and {which} must have the same classes, got {difference(known[0][0], names)}"
            )
    return known[0][0] if known else None


def difference(names: Sequence[str], others: Sequence[str]) -> str:
    """What distinguishes two lists of class names: the first class that differs, or the numbers of classes."""
    for number, (name, other) in enumerate(zip(names, others, strict=False)):
        if name != other:
            return f"{name!r} and {other!r} for label {number}"
    return f"{len(names)} and {len(others)} classes"


def plain_label(label: Any) -> int | str:
    """The label of one image as a whole number or a name; ValueError for anything else."""
    if isinstance(label, str):
        return str(label)
    if isinstance(label, (Tensor, np.ndarray, list, tuple)):
        array = label.detach().cpu().double().numpy() if isinstance(label, Tensor) else np.asarray(label)
        if array.size != 1:
            raise ValueError(f"label of shape {array.shape}; give the number of the class, e.g. by argmax")
        label = array.item()
    if isinstance(label, str):
        return label
    if isinstance(label, complex) or not hasattr(label, "__int__") or label != label or int(label) != label:
        raise ValueError(f"label {str(label)[:60]}")
    return int(label)


def whole_labels(labels: Any, names: tuple[str, ...] | None, which: str) -> Tensor:
    """The labels (N,) of all images as int64, from numbers, or from class names.

    ValueError for fractions, numbers below zero or without a class, names that are unknown, and one-hot vectors.
    """
    rule = f"{which} labels must be whole numbers"
    if np.ma.is_masked(labels):
        raise ValueError(f"{rule}, got masked ones")
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "O":
        labels = labels.tolist()
    if isinstance(labels, (list, tuple)):
        try:
            labels = [plain_label(label) for label in labels]
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{rule}, got {error}") from None
        has_names = {isinstance(label, str) for label in labels}
        array = np.array(labels, dtype=None if has_names == {False} else object)
    else:
        if isinstance(labels, Tensor):
            labels = labels.detach().cpu()
            labels = labels.double() if labels.is_floating_point() else labels  # NumPy has no bfloat16
        array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        is_hot = array.ndim == 2 and array.dtype.kind in "buif" and bool((array.sum(1) == 1).all())
        remedy = "; type labels.argmax(1)" if is_hot else ""
        raise ValueError(f"{which} labels must be one number per image, got shape {array.shape}{remedy}")
    if array.dtype.kind in "UO":
        numbers = {name: number for number, name in enumerate(names or ())}
        unknown = next((label for label in array.tolist() if label not in numbers), None)
        if unknown is not None:
            known = f"names out of {', '.join(list(numbers)[:3])}" if names else "a data set must name its `classes`"
            raise ValueError(f"{rule} or {known}, got {str(unknown)[:60]!r}")
        array = np.array([numbers[label] for label in array.tolist()])
    if array.dtype.kind not in "buif":
        raise ValueError(f"{rule}, got {array.dtype}")
    num = len(names) if names else MANY_CLASSES
    wrong = array[~((array >= 0) & (array < num))]
    fractions = array[array != np.round(array)] if array.dtype.kind == "f" else array[:0]
    if len(fractions):
        raise ValueError(f"{rule}, got {fractions[0]:g}")
    if len(wrong):
        raise ValueError(f"{which} labels must lie in 0..{num - 1}, got {wrong[0]}")
    return torch.from_numpy(array.astype(np.int64))
