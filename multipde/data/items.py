"""Items of a torchvision-style data set: each is read under a seed of its own, and checked."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multipde.data.images import Key
from multipde.data.seeds import stream_seed

FIXED_DRAW: Key = ("fixed draw",)
NUM_READS = 32
"""So often the first item is read before its transforms count as deterministic: some change an image only rarely."""


def read_items(data_set: Any, which: str, indices: Sequence[int], key: Key | None = None) -> list[tuple[Tensor, int]]:
    """Images as uint8 and labels of these items; a random transform depends on the key and the index alone.

    Args:
        data_set: ``data_set[i]`` is a PIL image or a tensor (uint8 or on [0, 1]), with its label.
        which: ``"train"`` or ``"test"``, for messages.
        key: names the draw; None is the fixed one.

    Raises:
        ValueError: an item that cannot be read or is no image with a label, with its index.
    """
    key = FIXED_DRAW if key is None else key
    with _random_states_restored():
        return [_read(data_set, which, i, stream_seed(*key, "transform", i)) for i in indices]


def transforms_at_random(data_set: Any, which: str) -> bool:
    """Whether the first item differs when it is read under different seeds.

    Raises:
        ValueError: it differs under one seed too, so that no resumed training could repeat it; or cannot be read.
    """
    with _random_states_restored():
        first, _ = _read(data_set, which, 0, 0)
        if all(torch.equal(first, _read(data_set, which, 0, seed)[0]) for seed in range(1, NUM_READS)):
            return False
        if not all(torch.equal(first, _read(data_set, which, 0, 0)[0]) for _ in range(NUM_READS)):
            raise ValueError(
                f"{which} must draw random numbers from the global CPU generators of torch, random or numpy, so that "
                "they can be seeded, got item 0 with other pixels under the same seeds"
            )
    return True


def to_uint8(images: Tensor, name: str) -> Tensor:
    """Images that are uint8 or lie on [0, 1], as uint8.

    Raises:
        ValueError: any other type or value, with the name.
    """
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"{name} must be uint8 or lie in [0, 1], got {images.dtype}")
    if not bool(((images >= 0) & (images <= 1)).all()):
        low, high = images.min(), images.max()
        raise ValueError(f"{name} must be uint8 or lie in [0, 1], got {low:g} to {high:g}; leave out Normalize")
    return (images * 255).round().to(torch.uint8)


def _read(data_set: Any, which: str, index: int, seed: int) -> tuple[Tensor, int]:
    from torchvision.transforms.v2.functional import pil_to_tensor

    torch.default_generator.manual_seed(seed)  # that of the CPU alone: torch.manual_seed would move those of GPUs too
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        image, label = data_set[index]
        image = image if isinstance(image, Tensor) else pil_to_tensor(image)
        if int(label) != label:
            raise ValueError(f"label {label}")
    except Exception as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{which} item {index} must be an image with a whole number as label, got {found}") from error
    return to_uint8(image, f"{which} item {index}"), int(label)


@contextmanager
def _random_states_restored() -> Iterator[None]:
    """Leave the global random generators of torch (on the CPU), Python and numpy in the states that they had before."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
