"""Exported networks beside the network they come from: differences of the scores, images per second, accuracy."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from multipde.conversions.sample_sizes import CALIBRATION_IMAGES
from multipde.data.batches import drawn_indices
from multipde.data.datasets import ImageData, split_indices
from multipde.data.feed import Feed
from multipde.data.images import Batch, ImageSet
from multipde.evaluation.metrics import evaluate_batches
from multipde.networks.inputs import Normalize
from multipde.networks.model_spec import ModelSpec
from multipde.runtime.device import Compute

LARGEST_DIFFERENCE = 1e-4
"""Largest difference from the scores of the network / its largest score."""

CALLS, SECONDS = 3, 0.5
"""Each network is timed for at least this number of calls and this time."""


def noise(spec: ModelSpec, num: int) -> Tensor:
    """Images (num, C, *size) of random grey values, uint8, always the same ones."""
    random = torch.Generator().manual_seed(0)
    return torch.randint(256, (num, spec.in_channels, *spec.image_sizes), dtype=torch.uint8, generator=random)


@torch.no_grad()
def checked_difference(run: Callable[[Tensor], Tensor], given: Tensor, expected: Tensor) -> float:
    """Largest difference from the expected scores / their largest, in batches of two lengths; ValueError above 1e-4."""
    found = torch.cat((run(given[:1]), run(given[1:])))
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not difference <= LARGEST_DIFFERENCE:
        raise ValueError(
            f"exported network must agree within {LARGEST_DIFFERENCE:g} of the largest score, got a difference of "
            f"{difference:.1e}; nothing was written"
        )
    return difference


@torch.no_grad()
def images_per_second(runs: Mapping[str, tuple[Callable[[Tensor], Tensor], Tensor]]) -> dict[str, float]:
    """The rate of every function on its images by the median time of a call, measured in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run, images in runs.values():
        run(images)
    while min(len(found) for found in seconds.values()) < CALLS or sum(map(sum, seconds.values())) < SECONDS * len(
        runs
    ):
        for name, (run, images) in runs.items():
            start = time.perf_counter()
            run(images)
            seconds[name].append(time.perf_counter() - start)
    return {name: len(images) / median(seconds[name]) for name, (_, images) in runs.items()}


@dataclass(frozen=True)
class Examples:
    """Labelled images as an exported network takes them: normalised, or uint8 where it normalises them itself."""

    data: ImageData
    spec: Any
    is_normalizing: bool

    def calibration(self, split: tuple[int, float]) -> Iterator[Tensor]:
        """Batches of random training images that are not held back."""
        drawable, _ = split_indices(len(self.data.train), *split)
        feed = self._feed(self.data.train)
        for x in feed.drawn(drawable, CALIBRATION_IMAGES, self.spec.image_sizes[0], (split[0], "calibrate"), batch=64):
            yield self._as_taken(x)

    def accuracy(self, net: nn.Module, num_images: int | None) -> float:
        """The accuracy of an exported network on the test images, or on a fixed random subset."""
        indices = None if num_images is None else drawn_indices(len(self.data.test), num_images, (0, "test"))
        batches: Iterator[Batch] = self._feed(self.data.test).evaluation(indices, self.spec.image_sizes[0])
        taken = ((self._as_taken(x), labels) for x, labels in batches)
        return evaluate_batches(net, taken, Compute(torch.device("cpu"))).accuracy

    def _feed(self, images: ImageSet) -> Feed:
        grey = Normalize((0.0,) * self.spec.in_channels, (1 / 255,) * self.spec.in_channels)
        return Feed(images, grey if self.is_normalizing else Normalize.of(self.spec), Compute(torch.device("cpu")))

    def _as_taken(self, x: Tensor) -> Tensor:
        return x.round().to(torch.uint8) if self.is_normalizing else x
