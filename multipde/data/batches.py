"""What is done to images before a network sees them, and how many of them, and which."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multipde.data.images import stream, stream_seed


class Normalize:
    """(x/255 - mean) / std for images (N, C, *size) on 0..255, with the statistics of the data for every channel.

    With ``per_image`` each image is standardised by its own mean and standard deviation, and the others are left out.
    A standard deviation of an image below one grey value counts as one, so that an even image becomes zero.
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
            std, mean = torch.std_mean(x, tuple(range(1, x.dim())), correction=0, keepdim=True)
            return (x - mean) / std.clamp_min(1.0)
        if not self.scale:
            return x / 255
        shape = (-1, *(1,) * (x.dim() - 2))
        return x * x.new_tensor(self.scale).view(shape) + x.new_tensor(self.shift).view(shape)


class Augment:
    """Horizontal flip, zero padding by 1/16 and a random crop back to the size, drawn for every image alone.

    The draw depends only on the key, so a repeated run and a resumed one see the same pictures.
    The padding is max(1, round(size/16)) pixels.

    Reference: Ruthotto & Haber (2018), section 5.
    """

    def __init__(self, size: int):
        from kornia import augmentation

        self.padding = max(1, round(size / 16))
        self.flip = augmentation.RandomHorizontalFlip(p=0.5)
        self.crop = augmentation.RandomCrop((size, size), padding=self.padding, cropping_mode="slice")

    def __call__(self, x: Tensor, *key: int | str, shard: tuple[int, int] = (0, 1)) -> Tensor:
        """Augmented images; as a shard (k, n), the k-th of n slices of a batch, they become what they would there."""
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
    """How many of the images an epoch of training sees: whole batches only, unless there is but one.

    The share of the epoch is rounded to whole batches, at least one.
    """
    return max(1, round(num // batch * share)) * batch if num >= batch else num


def drawn_indices(num: int, num_drawn: int | None, key: tuple[int | str, ...]) -> Tensor:
    """At most ``num_drawn`` of the indices below ``num`` in random order, all for None."""
    if num_drawn is not None and num_drawn < 1:
        raise ValueError(f"num_images must be positive, got {num_drawn}")
    return torch.randperm(num, generator=stream(*key))[:num_drawn]


def shard_of(values: Tensor, shard: tuple[int, int]) -> Tensor:
    """The k-th of n slices along the first axis, as equal as can be."""
    k, n = shard
    return values[len(values) * k // n : len(values) * (k + 1) // n]
