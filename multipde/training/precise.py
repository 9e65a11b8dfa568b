"""BatchNorm measured on training images before a validation; its running averages lag behind the weights."""

import math
from collections.abc import Iterator

from torch import Tensor, nn

from multipde.conversions.recalibration import recalibrate
from multipde.runtime.processes import num_processes
from multipde.runtime.sync_batchnorm import synchronized
from multipde.training.level import Level
from multipde.training.samples import Samples

SHARE_OF_EPOCH = 0.03
"""Largest share of the work of an epoch, where that is more than a batch."""

BATCH = 250
"""Images in a batch, and the smallest number of images."""


def num_precise(samples: Samples, level: Level) -> int:
    """Number of images on which BatchNorm is measured before a validation at a level.

    The forward pass of an image costs a third of its training step, so that a share s of the work of an epoch of N
    images pays for 3 s N images. Whole images are measured, which cost more where a level trains on windows of them.
    """
    most = max(BATCH, round(3 * SHARE_OF_EPOCH * samples.num_in_epoch(level) / level.crops_per_image))
    return min(samples.settings.precise_images, most, len(samples.indices)) // num_processes() * num_processes()


def precise_statistics(net: nn.Module, samples: Samples, level: Level, index: int) -> float:
    """Measure the running statistics of BatchNorm on fixed training images of a level, without augmentation.

    Only evaluation reads these statistics, so that they do not influence the training.

    Args:
        index: index of the level in the schedule.

    Returns:
        The number of images that went through the network, counted as images of the size that is trained; 0 if the
        settings ask for running averages, or if the network has no BatchNorm.
    """
    num = num_precise(samples, level)
    if not num:
        return 0
    with samples.train.compute.autocast(), synchronized(net):
        return num * level.crops_per_image if recalibrate(net, _images(samples, level, num, index)) else 0


def _images(samples: Samples, level: Level, num: int, index: int) -> Iterator[Tensor]:
    """Batches of nearly equal size, because BatchNorm takes no single image; each process has an equal slice."""
    batch = math.ceil(num / math.ceil(num / BATCH) / num_processes()) * num_processes()
    key = (samples.settings.seed, "precise", index)
    feed = samples.train.at(level.detail)
    return feed.drawn(samples.indices, num, level.image_size, key, batch=batch, shard=samples.train.compute.shard)
