"""Data sets that are known by name: the embedded shapes, and those that torchvision reads."""

from collections.abc import Callable
from typing import Any

import torch

from multipde.data import shapes
from multipde.data.image_data import MEMORY_BYTES, ImageData, with_statistics
from multipde.data.images import TensorImages


def load_shapes(num_train: int, num_test: int, size: int, seed: int) -> ImageData:
    """Training and test images of the ten shapes, rendered at a size.

    Raises:
        ValueError: no images, or more than fit into `MEMORY_BYTES`.
    """
    needed = 3 * size**2 * (num_train + num_test)
    if not (min(num_train, num_test) > 0 and needed <= MEMORY_BYTES):
        raise ValueError(
            f"images must fit into {MEMORY_BYTES >> 30} GiB, got {num_train} and {num_test} shapes of size {size}"
        )
    train = TensorImages(*shapes.render_shapes(num_train, size, seed=2 * seed))
    test = TensorImages(*shapes.render_shapes(num_test, size, seed=2 * seed + 1))
    return with_statistics("shapes", train, test, shapes.CLASS_NAMES, size)


def load_torchvision(name: str, root: str, download: bool) -> ImageData:
    """A data set of torchvision by the name that it has in `TORCHVISION`.

    Raises:
        ValueError: the data set is not there, cannot be read or cannot be downloaded.
    """
    try:
        train, test = TORCHVISION[name](root, download)
    except RuntimeError as error:
        raise ValueError(f"root must hold {name}, got none in {root} ({error}); type --download to fetch it") from None
    except OSError as error:
        raise ValueError(f"{name} must be readable or downloadable, got {error}") from None
    stored = _stored(train)
    return with_statistics(name, stored, _stored(test), train.classes, stored.images.shape[-1])


def _stored(part: Any) -> TensorImages:
    """The images that a torchvision set holds decoded: (N, H, W, C) in CIFAR, (N, C, H, W) in STL-10."""
    images = torch.from_numpy(part.data)
    labels = torch.as_tensor(part.targets if hasattr(part, "targets") else part.labels)
    return TensorImages(images if images.shape[1] == 3 else images.permute(0, 3, 1, 2).contiguous(), labels.long())


def _cifar(name: str) -> Callable[[str, bool], tuple[Any, Any]]:
    def make(root: str, download: bool) -> tuple[Any, Any]:
        from torchvision import datasets

        kind = getattr(datasets, name)
        return kind(root, train=True, download=download), kind(root, train=False, download=download)

    return make


def _stl(root: str, download: bool) -> tuple[Any, Any]:
    from torchvision import datasets

    return (datasets.STL10(root, "train", download=download), datasets.STL10(root, "test", download=download))


TORCHVISION = {"cifar10": _cifar("CIFAR10"), "cifar100": _cifar("CIFAR100"), "stl10": _stl}
"""Functions (root, download) -> (training set, test set), by name."""
