"""Torchvision-style data sets, which are read once, or in every epoch if they transform their images at random."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multipde.data.images import Batch, Key, Part, TensorImages, stream_seed
from multipde.data.labels import image_and_label, plain_label, whole_labels
from multipde.data.pixels import image_pixels
from multipde.mesh.pyramid import resize_images

NUM_READS = 32
"""How often the first item is read to detect random transforms, some of which change an image only rarely."""


@dataclass
class TransformedImages:
    """Training images that are read from their data set again in every epoch, because it transforms them at random.

    The pixels of an image depend only on the key and on its index in the data set, not on the order of access, so a
    resumed training sees the same images. Without a key they are those of one fixed draw, which is kept in memory.
    ``data_set[i]`` is a pair of an image, whose shape may vary, and its label.
    """

    data_set: Any
    fixed: TensorImages
    indices: Tensor
    names: tuple[str, ...] | None = None

    def __post_init__(self):
        self.labels = self.fixed.labels

    @classmethod
    def read(cls, data_set: Any, shape: Sequence[int], names: tuple[str, ...] | None) -> "TransformedImages":
        """Read the fixed draw of a data set, with all images resized to the shape (C, *size)."""
        items = read_items(data_set, "train", range(len(data_set)), names)
        images = [_resized(image, shape, i).round().to(torch.uint8) for i, (image, _) in enumerate(items)]
        fixed = TensorImages(torch.stack(images), torch.tensor([label for _, label in items]))
        return cls(data_set, fixed, torch.arange(len(items)), names)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "TransformedImages":
        return replace(self, fixed=self.fixed.take(indices), indices=self.indices[indices])

    def batches(self, parts: Sequence[Part], device: torch.device, key: Key | None = None) -> Iterator[Batch]:
        if key is None:
            yield from self.fixed.batches(parts, device)
            return
        num_channels, *sides = self.fixed.images.shape[1:]
        for size, index in parts:
            shape, indices = (num_channels, *[size] * len(sides)), self.indices[index].tolist()
            images, labels = torch.empty(len(indices), *shape), self.labels[index]
            for k, (image, label) in enumerate(read_items(self.data_set, "train", indices, self.names, key)):
                images[k] = _resized(image, shape, indices[k])
                if label != labels[k]:
                    raise ValueError(f"train item {indices[k]} must keep its label {labels[k]}, got {label}")
            yield images.to(device), labels.to(device)


def read_items(
    data_set: Any,
    which: str,
    indices: Sequence[int],
    names: tuple[str, ...] | None,
    key: Key | None = None,
    drawing: list[int] | None = None,
) -> list[tuple[Tensor, int]]:
    """Read items as pairs of a uint8 image and a label; random transforms depend on the key and the index alone.

    The label of an item is a number, or one of the names of the classes where the data set has any. The indices of
    items that draw random numbers are added to ``drawing`` if it is given.
    """
    items = []
    with _random_states_restored():
        for i in indices:
            seed = stream_seed(*(key or ("fixed draw",)), "transform", i)
            items.append(_read(data_set, which, i, seed, names))
            if drawing is not None and _has_drawn(seed):
                drawing.append(i)
    return items


def _has_drawn(seed: int) -> bool:
    """Whether random numbers have been drawn since the seed was set, which is set again."""
    then = _next_numbers()
    _seed(seed)
    return then != _next_numbers()


def _next_numbers() -> tuple[int, ...]:
    """What the generators of torch, random and numpy give next; quicker to compare than their states."""
    of_torch = torch.randint(2**62, (), device="cpu")
    return int(of_torch), random.getrandbits(62), int(np.random.randint(2**62, dtype=np.int64))


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)  # that of the CPU alone: torch.manual_seed would move those of GPUs too
    random.seed(seed)
    np.random.seed(seed % 2**32)


def transforms_at_random(data_set: Any, which: str, names: tuple[str, ...] | None) -> bool:
    """Whether the first item depends on the random seed; ValueError if one seed gives different images."""
    with _random_states_restored():
        first, _ = _read(data_set, which, 0, 0, names)
        if all(torch.equal(first, _read(data_set, which, 0, seed, names)[0]) for seed in range(1, NUM_READS)):
            return False
        if all(torch.equal(first, _read(data_set, which, 0, 0, names)[0]) for _ in range(NUM_READS)):
            return True
    raise ValueError(
        f"{which} must draw random numbers from the global CPU generators of torch, random or numpy, "
        "got item 0 with other pixels under the same seeds"
    )


def _read(data_set: Any, which: str, index: int, seed: int, names: tuple[str, ...] | None) -> tuple[Tensor, int]:
    _seed(seed)
    name = f"{which} item {index}"
    try:
        image, label = image_and_label(data_set[index], name)
        label = plain_label(label)
    except Exception as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{name} must be an image with a whole number as label, got {found}") from error
    return image_pixels(image, name), int(whole_labels([label], names, name))


def _resized(image: Tensor, shape: Sequence[int], index: int) -> Tensor:
    if image.dim() != len(shape) or image.shape[0] != shape[0]:
        expected = f"{shape[0]} channels and {len(shape) - 1} axes like the test images"
        raise ValueError(f"train item {index} must have {expected}, got shape {tuple(image.shape)}")
    return resize_images(image[None].float(), shape[1:])[0]


@contextmanager
def _random_states_restored() -> Iterator[None]:
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
