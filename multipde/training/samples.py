"""The images of a training: those for training, for validation, and for calibration."""

from collections.abc import Iterator
from dataclasses import replace

from multipde.data.augmentation import Augmentation, ImageFunction
from multipde.data.batches import images_per_epoch
from multipde.data.datasets import ImageData, split_indices
from multipde.data.feed import Feed
from multipde.data.images import Batch, stream_seed
from multipde.evaluation.candidates import Evaluator
from multipde.mesh.randomness import seeded
from multipde.networks.inputs import Normalize
from multipde.networks.model_spec import ModelSpec
from multipde.runtime.device import Compute
from multipde.runtime.processes import rank
from multipde.training.class_weights import balanced_indices, weights_of_classes
from multipde.training.level import Level
from multipde.training.objective import Objective
from multipde.training.settings import TrainSettings

UNKNOWN_EPOCHS = 10
"""Number of epochs that the learning rate assumes for a level whose number of epochs is not known."""


class Samples:
    """Draws images at random by (seed, purpose, level, epoch, batch) and normalises them for the network."""

    def __init__(
        self,
        data: ImageData,
        settings: TrainSettings,
        spec: ModelSpec,
        compute: Compute,
        function: ImageFunction | None = None,
    ):
        self.data, self.settings, normalize = data, settings, Normalize(spec.mean, spec.std, spec.standardize)
        self.train, self.test = Feed(data.train, normalize, compute), Feed(data.test, normalize, compute)
        self.indices, self.held_back = split_indices(len(data.train), settings.seed, settings.validation)
        asked = function or settings.augment
        self.augment = Augmentation.of(False if asked is None and data.transforms_itself else asked, spec.classes)
        self.classes = spec.classes

    def weighted(self, objective: Objective) -> Objective:
        """The objective with the class weights of the settings, after it is checked against the augmentation."""
        objective.check_labels(self.augment)
        weights = self.settings.class_weights
        if weights is None:
            return objective
        if weights == "balanced" and self.settings.balance:
            raise ValueError("class_weights must be left out where balance draws the images, got both")
        if objective.loss is not None:
            raise ValueError("class_weights must be left out with a loss of your own, got both")
        labels = self.data.train.labels[self.indices]
        return replace(objective, class_weights=weights_of_classes(weights, labels, self.classes))

    def num_in_epoch(self, level: Level, share: float = 1.0) -> int:
        """Number of images in an epoch of a level, or in a share of one."""
        return images_per_epoch(len(self.indices), level.batch, share)

    def num_in_level(self, level: Level, epochs_if_unknown: int) -> int:
        """Number of images in all epochs of a level."""
        last = (level.num_epochs or epochs_if_unknown) - 1
        return last * self.num_in_epoch(level) + self.num_in_epoch(level, level.share_of_epoch(last))

    def shares(self, level: Level, epoch: int, num_images: int) -> tuple[float, float]:
        """The share of a level that is done after so many images of an epoch, and that after another batch."""
        num, whole = epoch * self.num_in_epoch(level) + num_images, self.num_in_level(level, UNKNOWN_EPOCHS)
        return num / whole, (num + level.batch) / whole

    def epoch(self, level: Level, index: int, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from the ``start``-th on; ``index`` is that of the level in the schedule.

        While a batch is used, torch's global generators are seeded by its place in the training, for what a network
        draws itself, such as dropout; several processes draw different numbers.
        """
        key, labels = (self.settings.seed, "train", index, epoch), self.data.train.labels
        device = self.train.compute.device
        batches = self.train.at(level.detail).training(
            balanced_indices(self.indices, labels, key) if self.settings.balance else self.indices,
            level.mixed or ((level.image_size, 1.0),),
            level.batch,
            key=key,
            augment=self.augment,
            share=level.share_of_epoch(epoch),
            start=start,
            crop=level.crop,
        )
        for number, batch in enumerate(batches, start):
            with seeded(stream_seed(*key, number, rank()), device):
                yield batch

    def evaluator(self, index: int) -> Evaluator:
        """An evaluator with training images for calibration at the move to the level with this index."""
        key = (self.settings.seed, "calibrate", index)
        return Evaluator(
            self.data, self.train.normalize, self.train.compute, self.indices, self.held_back, self.held_back[:0], key
        )
