"""Labelled images that their data set transforms at random whenever it is asked for one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multipde.data.images import Batch, Key, Part, TensorImages
from multipde.data.items import read_items
from multipde.mesh.pyramid import resize_images


@dataclass
class TransformedImages:
    """Training images that are read from their data set anew for every key, i.e. in every epoch.

    The pixels of an image depend only on the key and on its index in the data set, not on the order of access, so a
    resumed training sees the same images. Without a key they are those of one fixed draw, which is kept in memory.

    Args:
        data_set: ``data_set[i]`` is an image, perhaps of another shape every time, with its label.
        fixed: the fixed draw.
        indices: of the images in the data set.
    """

    data_set: Any
    fixed: TensorImages
    indices: Tensor

    def __post_init__(self):
        self.labels = self.fixed.labels

    @classmethod
    def read(cls, data_set: Any, shape: Sequence[int]) -> "TransformedImages":
        """All images of a data set, whose fixed draw gets the shape (C, *size).

        Raises:
            ValueError: an item that cannot be read or has another number of channels or axes, with its index.
        """
        items = read_items(data_set, "train", range(len(data_set)))
        images = [_resized(image, shape, i).round().to(torch.uint8) for i, (image, _) in enumerate(items)]
        fixed = TensorImages(torch.stack(images), torch.tensor([label for _, label in items]))
        return cls(data_set, fixed, torch.arange(len(items)))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "TransformedImages":
        return TransformedImages(self.data_set, self.fixed.take(indices), self.indices[indices])

    def batches(self, parts: Sequence[Part], device: torch.device, key: Key | None = None) -> Iterator[Batch]:
        if key is None:
            yield from self.fixed.batches(parts, device)
            return
        num_channels, *sides = self.fixed.images.shape[1:]
        for size, index in parts:
            items = self.indices[index].tolist()
            shape, labels = (num_channels, *[size] * len(sides)), self.labels[index]
            images = torch.empty(len(items), *shape)
            read = read_items(self.data_set, "train", items, key)
            for row, item, (image, label), expected in zip(images, items, read, labels.tolist(), strict=True):
                row.copy_(_resized(image, shape, item))
                if label != expected:
                    raise ValueError(f"train item {item} must have one label, got {expected} and {label}")
            yield images.to(device), labels.to(device)


def _resized(image: Tensor, shape: Sequence[int], item: int) -> Tensor:
    if image.dim() != len(shape) or image.shape[0] != shape[0]:
        raise ValueError(
            f"train item {item} must have {shape[0]} channels and {len(shape) - 1} axes like the test images, "
            f"got shape {tuple(image.shape)}"
        )
    return resize_images(image[None].float(), shape[1:])[0]
