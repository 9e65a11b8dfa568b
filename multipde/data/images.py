"""Labelled images at any size: in memory as one tensor, or streamed from files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from multipde.data.decode import decode_image
from multipde.mesh.pyramid import resize_images

Batch = tuple[Tensor, Tensor]

NUM_LEVELS = 4
"""How many levels of a set are kept on the device, the oldest given up first."""


class ImageSet(Protocol):
    """Labelled images that can be drawn in any order at any size."""

    labels: Tensor

    def batches(self, size: int, order: Tensor, batch: int, device: torch.device) -> Iterator[Batch]:
        """Images (batch, C, size, size) on 0..255 as float32 and labels (batch,), in the given order, on the device."""
        ...

    def __len__(self) -> int: ...


@dataclass
class TensorImages:
    """Images as one uint8 tensor; the levels in use lie on the device, averaged to their sizes once.

    Shape:
        - images: (num, C, *size), uint8
        - labels: (num,), int64
    """

    images: Tensor
    labels: Tensor
    _levels: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def at_size(self, size: int, device: torch.device) -> Tensor:
        """All images as cell averages on the mesh of that size: uint8 at their own size, else float32."""
        if (size, device) not in self._levels:
            images = self.images.to(device)
            if size != images.shape[-1]:
                images = torch.cat([resize_images(part.float(), size) for part in images.split(2048)])
            if len(self._levels) == NUM_LEVELS:
                self._levels.pop(next(iter(self._levels)))
            self._levels[size, device] = images
        return self._levels[size, device]

    def batches(self, size: int, order: Tensor, batch: int, device: torch.device) -> Iterator[Batch]:
        images, labels = self.at_size(size, device), self.labels.to(device)
        for index in order.to(device).split(batch):
            yield images[index].float(), labels[index]


@dataclass
class StreamedImages:
    """Images decoded from files when they are needed, at the size of the level, by worker processes."""

    paths: Sequence[Path]
    labels: Tensor
    num_workers: int = 2

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, order: Tensor, batch: int, device: torch.device) -> Iterator[Batch]:
        from torch.utils.data import DataLoader, Subset

        loader = DataLoader(
            Subset(_Files(self.paths, self.labels, size), order.tolist()),
            batch_size=batch,
            num_workers=self.num_workers,
            pin_memory=device.type == "cuda",
            multiprocessing_context="spawn" if self.num_workers else None,
        )
        try:
            for images, labels in loader:
                yield images.to(device, non_blocking=True).float(), labels.to(device, non_blocking=True)
        except ValueError as error:  # a worker sends its traceback; the last line says which file it was
            raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from None


@dataclass
class _Files(torch.utils.data.Dataset):
    paths: Sequence[Path]
    labels: Tensor
    size: int

    def __getitem__(self, index: int) -> Batch:
        return decode_image(self.paths[index], self.size), self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)
