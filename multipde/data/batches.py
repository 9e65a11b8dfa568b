"""Batches as the network takes them: shuffled, normalised and augmented on the device."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from multipde.data.images import Batch, ImageSet
from multipde.data.seeds import stream, stream_seed


class Normalize:
    """(x/255 - mean) / std for images on 0..255: of the data per channel, or of every image over all it has.

    A per-image standard deviation below one grey value counts as one, so that an even image becomes zero.

    Args:
        per_image: standardise each image by its own mean and standard deviation; the others are left out then.

    Shape:
        - x, result: (N, C, *size)
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], per_image: bool = False):
        self.per_image = per_image
        self.scale = [1 / (255 * s) for s in std]
        self.shift = [-m / s for m, s in zip(mean, std, strict=True)]

    @classmethod
    def of(cls, spec: Any) -> "Normalize":
        """That of anything with ``mean`` and ``std``, and perhaps ``standardize``: a network's config, or data."""
        return cls(spec.mean, spec.std, getattr(spec, "standardize", False))

    def __call__(self, x: Tensor) -> Tensor:
        if self.per_image:
            axes = tuple(range(1, x.dim()))
            std, mean = torch.std_mean(x, axes, correction=0, keepdim=True)
            return (x - mean) / std.clamp_min(1.0)
        if not self.scale:
            return x / 255
        shape = (-1, *(1,) * (x.dim() - 2))
        return x * x.new_tensor(self.scale).view(shape) + x.new_tensor(self.shift).view(shape)


class Augment:
    """Horizontal flip, zero padding by 1/16 and a random crop back to the size, drawn for every image alone.

    The draw depends only on the key, so a repeated run and a resumed one see the same pictures.

    Args:
        size: image side in pixels; the padding is max(1, round(size/16)).

    Reference: Ruthotto & Haber (2018), section 5.
    """

    def __init__(self, size: int):
        from kornia import augmentation

        self.padding = max(1, round(size / 16))
        self.flip = augmentation.RandomHorizontalFlip(p=0.5)
        self.crop = augmentation.RandomCrop((size, size), padding=self.padding, cropping_mode="slice")

    def __call__(self, x: Tensor, *key: int | str, shard: tuple[int, int] = (0, 1)) -> Tensor:
        """Augmented images.

        Args:
            shard: (k, n) where the images are the k-th of the n slices of a batch; they become what they would there.
        """
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(stream_seed(*key))
            if shard == (0, 1):
                return self.crop(self.flip(x))
            for transform in (self.flip, self.crop):
                drawn = transform.forward_parameters(torch.Size((len(x) * shard[1], *x.shape[1:])))
                x = transform(x, {k: v if k == "forward_input_shape" else shard_of(v, shard) for k, v in drawn.items()})
            return x


def images_per_epoch(num: int, batch: int, share: float = 1.0) -> int:
    """How many of the images an epoch of `training_batches` sees: whole batches only, unless there is but one.

    Args:
        share: of the epoch, rounded to whole batches, at least one.
    """
    return max(1, round(num // batch * share)) * batch if num >= batch else num


def training_batches(
    images: ImageSet,
    indices: Tensor,
    sizes: Sequence[tuple[int, float]],
    batch: int,
    device: torch.device,
    normalize: Normalize,
    *,
    key: tuple[int | str, ...],
    augment: bool = False,
    share: float = 1.0,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """One epoch in random order; a last batch that is not full is dropped, unless it is the only one.

    Args:
        indices: the images to train on.
        sizes: image sides, each with its share of the batches; which batch has which is drawn at random.
        key: name of the random stream of this epoch.
        augment: flip, pad and crop.
        share: of the epoch.
        start: number of the first batch that is wanted; the ones before are not read.
        shard: (k, n) for the k-th of n equal slices of every batch; the others are not read.

    Shape:
        - each: images (batch / n, C, size, size), labels (batch / n,)
    """
    order = indices[torch.randperm(len(indices), generator=stream(*key, "order"))]
    order = order[: images_per_epoch(len(order), batch, share)]
    drawn = _drawn_sizes(sizes, -(-len(order) // batch), key)
    slices = [shard_of(part, shard) for part in order.split(batch)]
    parts = list(zip(drawn, slices, strict=True))[start:]
    transforms = {size: Augment(size) for size in set(drawn)} if augment else {}
    for i, (x, labels) in enumerate(images.batches(parts, device, key), start):
        x, size = normalize(x), drawn[i]
        if augment:
            x = transforms[size](x, *key, i, shard=shard)
        yield _laid_out(x), labels


def _drawn_sizes(sizes: Sequence[tuple[int, float]], num: int, key: tuple[int | str, ...]) -> list[int]:
    """A size for each of the batches: as many as the shares say, in random order."""
    if len(sizes) == 1:
        return [sizes[0][0]] * num
    edges = [round(num * sum(share for _, share in sizes[: i + 1])) for i in range(len(sizes))]
    repeated = [size for (size, _), a, b in zip(sizes, [0, *edges], edges, strict=False) for _ in range(b - a)]
    return [repeated[i] for i in torch.randperm(num, generator=stream(*key, "sizes"))]


def evaluation_batches(
    images: ImageSet,
    indices: Tensor | None,
    size: int,
    batch: int,
    device: torch.device,
    normalize: Normalize,
    *,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """All images, or those of the indices, in order, normalised.

    Args:
        shard: (k, n) for the k-th of n slices of every batch, perhaps empty.

    Shape:
        - each: images (at most batch, C, size, size), labels
    """
    order = torch.arange(len(images)) if indices is None else indices
    for x, labels in images.batches([(size, shard_of(part, shard)) for part in order.split(batch)], device):
        yield _laid_out(normalize(x)), labels


def drawn_images(
    images: ImageSet,
    indices: Tensor | None,
    num: int,
    size: int,
    device: torch.device,
    normalize: Normalize,
    key: tuple[int | str, ...],
) -> Iterator[Tensor]:
    """Batches of images drawn at random by the key from all or from the indices, at most ``num`` in all.

    Shape:
        - each: (at most 250, C, size, size)
    """
    chosen = drawn_indices(len(images) if indices is None else len(indices), num, key)
    chosen = chosen if indices is None else indices[chosen]
    for x, _ in evaluation_batches(images, chosen, size, 250, device, normalize):
        yield x


def drawn_indices(num: int, num_drawn: int | None, key: tuple[int | str, ...]) -> Tensor:
    """At most ``num_drawn`` of the indices below ``num`` in random order, all for None.

    Raises:
        ValueError: a number that is not positive.
    """
    if num_drawn is not None and num_drawn < 1:
        raise ValueError(f"num_images must be positive, got {num_drawn}")
    return torch.randperm(num, generator=stream(*key))[:num_drawn]


def shard_of(values: Tensor, shard: tuple[int, int]) -> Tensor:
    """The k-th of n slices along the first axis, as equal as can be."""
    k, n = shard
    return values[len(values) * k // n : len(values) * (k + 1) // n]


def _laid_out(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()
