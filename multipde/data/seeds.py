"""Random streams with names: the name alone decides the numbers, so that no state has to be stored to repeat them."""

import hashlib

import torch


def stream_seed(*key: int | str) -> int:
    """The seed of the stream of this name, e.g. ``stream_seed(seed, "augment", level, epoch, batch)``."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def stream(*key: int | str) -> torch.Generator:
    """A generator on the CPU for the stream of this name."""
    return torch.Generator().manual_seed(stream_seed(*key))
