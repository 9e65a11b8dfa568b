"""The images of a training: which are trained on, which are held back, and which are drawn for measurements."""

from collections.abc import Iterator

from multipde.data.batches import Normalize, images_per_epoch
from multipde.data.datasets import ImageData, split_indices
from multipde.data.feed import Feed
from multipde.data.images import Batch
from multipde.evaluation.candidates import Evaluator
from multipde.networks.model_spec import ModelSpec
from multipde.runtime.device import Compute
from multipde.training.level import Level
from multipde.training.settings import TrainSettings


class Samples:
    """Every draw is named by (seed, purpose, level, epoch, batch), so that no random state has to be kept.

    Args:
        spec: of the network, which says how images are normalised.
    """

    def __init__(self, data: ImageData, settings: TrainSettings, spec: ModelSpec, compute: Compute):
        self.data, self.settings, normalize = data, settings, Normalize(spec.mean, spec.std, spec.standardize)
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

    def evaluator(self, index: int) -> Evaluator:
        """Draws training images to measure on at the move to the level in this place of the schedule."""
        key = (self.settings.seed, "calibrate", index)
        return Evaluator(
            self.data, self.train.normalize, self.train.compute, self.indices, self.held_back, self.held_back[:0], key
        )
