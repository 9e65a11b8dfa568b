"""The protocol of a set of labelled images, and the set whose images are one tensor in memory."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from multipde.mesh.pyramid import resize_images

Batch = tuple[Tensor, Tensor]
Part = tuple[int, Tensor]
"""The specification of a batch: its image side, and the indices of its images."""
Key = tuple[int | str, ...]
"""Name of a random stream, e.g. ``(seed, "train", level, epoch)``."""
NUM_LEVELS = 4
"""Number of sizes at which a set keeps its images on the device; the size that was averaged first is dropped first."""


def stream_seed(*key: int | str) -> int:
    """The seed of the random stream with this name, e.g. ``stream_seed(seed, "augment", level, epoch, batch)``."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1


def stream(*key: int | str) -> torch.Generator:
    """A torch generator on the CPU for the random stream with this name."""
    return torch.Generator().manual_seed(stream_seed(*key))


class ImageSet(Protocol):
    """Labelled images that can be read in any order at any size."""

    labels: Tensor

    def batches(self, parts: Sequence[Part], device: torch.device, key: Key | None = None) -> Iterator[Batch]:
        """For every part, yield images (batch, C, size, size) on 0..255 as float32 and labels (batch,), on the device.

        The key determines random transforms; None stands for one fixed draw, which everything but training uses.
        """
        ...

    def take(self, indices: Tensor) -> "ImageSet":
        """The set of these images only."""
        ...

    def __len__(self) -> int: ...


@dataclass
class TensorImages:
    """Images (num, C, *size) as one uint8 tensor, which is averaged to a size once and then kept on the device."""

    images: Tensor
    labels: Tensor
    _levels: dict[tuple[int, torch.device, int], Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def at_size(self, size: int, device: torch.device) -> Tensor:
        """All images as cell averages on the mesh of that size; uint8 at their own size, float32 at any other."""
        version = 0 if self.images.is_inference() else self.images._version  # it counts changes in place
        key = size, device, version
        if key not in self._levels:
            images = self.images.to(device)
            if size != images.shape[-1]:
                images = torch.cat([resize_images(part.float(), size) for part in images.split(2048)])
            if len(self._levels) == NUM_LEVELS:
                self._levels.pop(next(iter(self._levels)))
            self._levels[key] = images
        return self._levels[key]

    def take(self, indices: Tensor) -> "TensorImages":
        return TensorImages(self.images[indices], self.labels[indices])

    def batches(self, parts: Sequence[Part], device: torch.device, key: Key | None = None) -> Iterator[Batch]:
        levels = {size: self.at_size(size, device) for size in dict.fromkeys(size for size, _ in parts)}
        labels = self.labels.to(device)
        for size, order in parts:
            index = order.to(device)
            yield levels[size][index].float(), labels[index]
