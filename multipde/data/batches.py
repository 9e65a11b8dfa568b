"""Which images an epoch, a measurement or a process uses."""

import torch
from torch import Tensor

from multipde.data.images import stream


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
