"""Data that come without test images: a share of the images of every class is held back for the test."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from multipde.data.images import stream
from multipde.data.labels import LABEL_KEYS, image_and_label, plain_label

TEST_PARTS = ("test", "val", "valid", "validation")
"""Names of the part with test images; the first that is there is taken."""


def check_test_share(share: float | None) -> None:
    """Raise ValueError for a share that is not between zero and one; None stands for none."""
    if share is not None and not 0 < share < 1:
        raise ValueError(f"test_share must lie in (0, 1), got {share}")


def split_by_class(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The indices of training and of test images, in order; the same for the same labels.

    Of every class with n images round(share · n) are test images, but at least one, and at least one is left.
    """
    train, test = [], []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        order = members[torch.randperm(len(members), generator=stream(0, "test share", label))]
        num = min(max(1, round(share * len(members))), len(members) - 1)
        test.append(order[:num])
        train.append(order[num:])
    return torch.cat(train).sort()[0], torch.cat(test).sort()[0]


def share_note(share: float, num_test: int, num: int, what: str) -> str:
    """The line that says which images are held back."""
    return f"{num_test:,} of {num:,} images of {what} are held back for the test (a share of {share:g} of every class)"


def needs_share(what: str) -> ValueError:
    """The error for data without test images."""
    return ValueError(f"data must have test images, got {what} alone; type --test-share 0.2, test_share=0.2 in Python")


def split_data_set(data_set: Any, share: float | None) -> tuple[tuple[Any, Any], str]:
    """A pair (train, test) out of one data set whose items are images with labels, and what is said about it."""
    what = type(data_set).__name__
    if share is None:
        raise needs_share(f"a {what}")
    labels = _labels(data_set)
    train, test = split_by_class(labels, share)
    pair = tuple(Subset(data_set, part.tolist()) for part in (train, test))
    return (pair[0], pair[1]), share_note(share, len(test), len(labels), f"the {what}")


def pair_of_parts(parts: Mapping[str, Any], share: float | None) -> tuple[tuple[Any, Any], str]:
    """A pair (train, test) out of parts by name, as those of a ``DatasetDict``, and what is said about it."""
    name = next((name for name in TEST_PARTS if name in parts), None)
    if share is not None or name is None:
        if name == "test":
            raise ValueError("test_share must be left out for data with test images, got both")
        return split_data_set(parts["train"], share)
    others = ", ".join(str(each) for each in parts if each not in ("train", name))
    said = [f"the test images are those of the part {name!r}"] * (name != "test")
    said += [f"left out: {others}"] * bool(others)
    return (parts["train"], parts[name]), "; ".join(said)


def _labels(data_set: Any) -> Tensor:
    """The labels of a data set, from its list of labels where it has one, else from its items."""
    column = getattr(data_set, "targets", None)
    if column is None and hasattr(data_set, "column_names"):
        name = next((name for name in LABEL_KEYS if name in data_set.column_names), None)
        column = None if name is None else data_set[name]
    if not isinstance(column, (Sequence, Tensor)) or len(column) != len(data_set):
        items = (data_set[k] for k in range(len(data_set)))
        column = [plain_label(image_and_label(item, "data set")[1]) for item in items]
    found = [plain_label(label) for label in column]
    numbers = {label: k for k, label in enumerate(sorted(set(found), key=str))}
    return torch.tensor([numbers[label] for label in found])


def files_of(part: Any) -> tuple[list[str], list[Path], Tensor] | None:
    """Class names, files and labels of an ``ImageFolder`` without transforms, or of a part of it; None for others."""
    indices = None
    if isinstance(part, Subset):
        if type(part) is not Subset:  # it may change the items
            return None
        part, indices = part.dataset, part.indices
    samples, names = getattr(part, "samples", None), getattr(part, "classes", None)
    if not isinstance(samples, list) or not isinstance(names, list) or getattr(part, "transforms", 0) is not None:
        return None
    from torchvision.datasets.folder import DatasetFolder, default_loader

    if type(part).__getitem__ is not DatasetFolder.__getitem__ or part.loader is not default_loader:
        return None
    kept = samples if indices is None else [samples[k] for k in indices]
    return names, [Path(path) for path, _ in kept], torch.tensor([label for _, label in kept])
