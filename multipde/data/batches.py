"""Normalisation and augmentation of images, and which of them an epoch or a process uses."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multipde.data.images import stream
from multipde.mesh.pyramid import restrict_images


class Normalize:
    """The normalisation (x/255 - mean) / std of images x (N, C, *size) on 0..255, with one mean and std per channel.

    With ``per_image`` each image is standardised by its own mean and standard deviation instead. A standard deviation
    below one grey value then counts as one grey value, so that a uniform image becomes zero. With a ``detail`` above 1
    these are mean and deviation of the image averaged over cells of so many pixels per axis, see
    `multipde.with_detail`.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], per_image: bool = False, detail: int = 1):
        self.per_image, self.detail = per_image, detail
        self.scale = [1 / (255 * s) for s in std]
        self.shift = [-m / s for m, s in zip(mean, std, strict=True)]

    @classmethod
    def of(cls, spec: Any) -> "Normalize":
        """The normalisation of a network's description or of a data set, from its mean, std, standardize and detail."""
        return cls(spec.mean, spec.std, getattr(spec, "standardize", False), getattr(spec, "detail", 1))

    def at(self, detail: int) -> "Normalize":
        """The same for a network with another detail."""
        other = copy.copy(self)
        other.detail = detail
        return other

    def __call__(self, x: Tensor) -> Tensor:
        if self.per_image:
            seen = x if self.detail == 1 else restrict_images(x, [s // self.detail for s in x.shape[2:]])
            std, mean = torch.std_mean(seen, tuple(range(1, x.dim())), correction=0, keepdim=True)
            return (x - mean) / std.clamp_min(1.0)
        if not self.scale:
            return x / 255
        shape = (-1, *(1,) * (x.dim() - 2))
        return x * x.new_tensor(self.scale).view(shape) + x.new_tensor(self.shift).view(shape)


def images_per_epoch(num: int, batch: int, share: float = 1.0) -> int:
    """The number of images that an epoch, or a share of one, uses: whole batches only, or all if they fill no batch.

    The share of the epoch is rounded to whole batches, at least one.
    """
    return max(1, round(num // batch * share)) * batch if num >= batch else num


def drawn_indices(num: int, num_drawn: int | None, key: tuple[int | str, ...]) -> Tensor:
    """At most ``num_drawn`` random indices below ``num`` in random order; all of them for None."""
    if num_drawn is not None and num_drawn < 1:
        raise ValueError(f"num_images must be positive, got {num_drawn}")
    return torch.randperm(num, generator=stream(*key))[:num_drawn]


def shard_of(values: Tensor, shard: tuple[int, int]) -> Tensor:
    """The k-th of n slices along the first axis, whose lengths differ by at most one."""
    k, n = shard
    return values[len(values) * k // n : len(values) * (k + 1) // n]
