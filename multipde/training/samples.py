"""The images of a training: which are trained on, which are held back, and which are drawn for measurements."""

from collections.abc import Iterator

import torch
from torch import Tensor

from multipde.data.batches import Normalize, images_per_epoch
from multipde.data.datasets import ImageData, split_indices
from multipde.data.feed import Feed
from multipde.data.images import Batch
from multipde.networks.model_spec import ModelSpec
from multipde.runtime.device import Compute
from multipde.training.level import Level
from multipde.training.settings import TrainSettings
from multipde.training.switch import DrawImages


class Samples:
    """Every draw is named by (seed, purpose, level, epoch, batch), so that no random state has to be kept.

    Args:
        spec: of the network, which says how images are normalised.
    """

    def __init__(self, data: ImageData, settings: TrainSettings, spec: ModelSpec, compute: Compute):
        self.settings, normalize = settings, Normalize(spec.mean, spec.std, spec.standardize)
        self.train, self.test = Feed(data.train, normalize, compute), Feed(data.test, normalize, compute)
        self.indices, self.held_back = split_indices(len(data.train), settings.seed, settings.validation)
        self.augment = not getattr(data, "transforms_itself", False) if settings.augment is None else settings.augment

    def num_in_epoch(self, level: Level, share: float = 1.0) -> int:
        """How many images an epoch of a level sees."""
        return images_per_epoch(len(self.indices), level.batch, share)

    def num_in_level(self, level: Level, epochs_if_unknown: int) -> int:
        """How many images all epochs of a level see."""
        epochs = range(level.num_epochs or epochs_if_unknown)
        return sum(self.num_in_epoch(level, level.share_of_epoch(e)) for e in epochs)

    def epoch(self, level: Level, index: int, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch of the level in this place of the schedule, from one of them on."""
        return self.train.training(
            self.indices,
            level.sizes,
            level.batch,
            key=(self.settings.seed, "train", index, epoch),
            augment=self.augment,
            share=level.share_of_epoch(epoch),
            start=start,
        )

    def draw(self, index: int) -> DrawImages:
        """Training images to measure on at the move to the level in this place of the schedule."""
        key = (self.settings.seed, "calibrate", index)

        def draw(num: int, size: int) -> Tensor:
            return torch.cat(list(self.train.drawn(self.indices, num, size, key)))

        return draw

    def calibration(self, size: int, index: int) -> Iterator[Tensor]:
        """Training images on which BatchNorm is measured anew at the level in this place of the schedule."""
        key = (self.settings.seed, "calibrate", index)
        return self.train.drawn(self.indices, self.settings.calibration_images, size, key)
