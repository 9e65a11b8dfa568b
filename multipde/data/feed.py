"""Batches for a network: images are drawn in random order, augmented and normalised on the device."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from multipde.data.augmentation import Augment, Augmentation
from multipde.data.batches import drawn_indices, images_per_epoch, shard_of
from multipde.data.images import Batch, ImageSet, Key, stream
from multipde.networks.inputs import Normalize
from multipde.runtime.device import Compute


@dataclass(frozen=True)
class Feed:
    """Makes normalised batches of an image set, on the device of ``compute`` and for its shard of every batch."""

    images: ImageSet
    normalize: Normalize
    compute: Compute

    def at(self, detail: int) -> "Feed":
        """The same batches for a network with this detail, see `Normalize`."""
        return replace(self, normalize=self.normalize.at(detail))

    def training(
        self,
        indices: Tensor,
        sizes: Sequence[tuple[int, float]],
        batch: int,
        *,
        key: Key,
        augment: Augmentation | None = None,
        share: float = 1.0,
        start: int = 0,
        crop: int | None = None,
    ) -> Iterator[Batch]:
        """The batches of one epoch in random order, without a last batch that is not full, unless it is the only one.

        Images that are faster to read in an order of their own, as those of shards, have a method ``order``.

        Args:
            indices: indices of the training images.
            sizes: pairs of an image side and its share of the batches; the side of every batch is drawn at random.
            batch: images per batch, of all processes together.
            key: name of the random stream of this epoch.
            augment: what is done to the images at random; None for nothing.
            share: share of the epoch, in (0, 1].
            start: index of the first batch; the batches before it are not read.
            crop: side of a random window that is taken of every image in the end; None for the whole image.

        Shape:
            - each: images (batch / num_processes, C, size, size), labels (batch / num_processes,), or the shares of
              the classes (batch / num_processes, classes) where the augmentation mixes them
        """
        shard = self.compute.shard
        order = getattr(self.images, "order", _shuffled)(indices, stream(*key, "order"))
        order = order[: images_per_epoch(len(order), batch, share)]
        drawn = _drawn_sizes(sizes, -(-len(order) // batch), key)
        wholes = order.split(batch)
        needed = [shard_of(w, shard) if augment is None else w[augment.rows(len(w), shard)] for w in wholes]
        parts = list(zip(drawn, needed, strict=True))[start:]
        transforms = {size: Augment(size, augment) for size in set(drawn)} if augment else {}
        for i, (x, labels) in enumerate(self.images.batches(parts, self.compute.device, key), start):
            if augment is None:
                x = self.normalize(x)
            else:
                x, labels = transforms[drawn[i]](x, labels, self.normalize, (*key, i), len(wholes[i]), shard)
            x = x if crop is None else _windows(x, crop, (*key, i, "window"), len(wholes[i]), shard)
            yield laid_out(x), labels

    def evaluation(self, indices: Tensor | None, size: int, batch: int = 250) -> Iterator[Batch]:
        """The batches of all images, or of those of the indices, in order; a process's slice of one may be empty."""
        if batch < 1:
            raise ValueError(f"batch must be positive, got {batch}")
        order = torch.arange(len(self.images)) if indices is None else indices
        return self._ordered(order.split(batch), size, self.compute.shard)

    def drawn(
        self,
        indices: Tensor | None,
        num: int,
        size: int,
        key: Key,
        *,
        batch: int = 250,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[Tensor]:
        """Batches (batch, C, size, size), the last one with fewer or one more, of at most ``num`` random images.

        Args:
            shard: (k, n) for the k-th of n slices of each batch; by default every process has all images.
        """
        chosen = drawn_indices(len(self.images) if indices is None else len(indices), num, key)
        chosen = chosen if indices is None else indices[chosen]
        wholes = list(chosen.split(batch))
        if len(wholes) > 1 and len(wholes[-1]) == 1:  # BatchNorm may find no variance in one image
            wholes[-2:] = [torch.cat(wholes[-2:])]
        return (x for x, _ in self._ordered(wholes, size, shard))

    def _ordered(self, wholes: Iterable[Tensor], size: int, shard: tuple[int, int]) -> Iterator[Batch]:
        parts = [(size, shard_of(whole, shard)) for whole in wholes]
        for x, labels in self.images.batches(parts, self.compute.device):
            yield laid_out(self.normalize(x)), labels


def _shuffled(indices: Tensor, generator: torch.Generator) -> Tensor:
    return indices[torch.randperm(len(indices), generator=generator)]


def _drawn_sizes(sizes: Sequence[tuple[int, float]], num: int, key: Key) -> list[int]:
    """A size for every batch, in random order and in proportion to the shares."""
    if len(sizes) == 1:
        return [sizes[0][0]] * num
    edges = [round(num * sum(share for _, share in sizes[: i + 1])) for i in range(len(sizes))]
    repeated = [size for (size, _), a, b in zip(sizes, [0, *edges], edges, strict=False) for _ in range(b - a)]
    return [repeated[i] for i in torch.randperm(num, generator=stream(*key, "sizes"))]


def _windows(x: Tensor, side: int, key: Key, num: int, shard: tuple[int, int]) -> Tensor:
    """A random window (N, C, side, side) of every image (N, C, H, W) of this process's slice of a batch of ``num``."""
    rooms = [size - side + 1 for size in x.shape[2:]]
    corners = torch.stack([torch.randint(room, (num,), generator=stream(*key, i)) for i, room in enumerate(rooms)])
    rows, columns = (shard_of(c, shard)[:, None] + torch.arange(side) for c in corners)
    image, channel = torch.arange(len(x))[:, None, None, None], torch.arange(x.shape[1])[:, None, None]
    return x[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def laid_out(x: Tensor) -> Tensor:
    """Images in the layout in which networks are placed, see `Compute.place`."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()
