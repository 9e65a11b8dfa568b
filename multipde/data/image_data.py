"""A data set for training and evaluation: its images, its classes and its statistics."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from multipde.data.bad_images import Skipped
from multipde.data.images import ImageSet, TensorImages
from multipde.data.streamed import StreamedImages
from multipde.data.transformed import TransformedImages

MEMORY_BYTES = 4 * 2**30
"""Folders whose decoded images would take more bytes are streamed; more shapes than fit into it are refused."""


@dataclass
class ImageData:
    """A labelled data set: training and test images, names of the classes, and statistics for the normalisation.

    Args:
        name: name of the data set in tables and records.
        train, test: the images with their labels; any size can be read from them.
        class_names: one name per class, in the order of the labels 0, 1, ...
        size: image side in pixels at which the images are kept.
        mean, std: mean and standard deviation of each channel of the training images, with pixels on [0, 1].
        notes: lines for the user on what was done to the images, such as a change of their shape.
        transforms_itself: whether the data set transforms its training images at random, anew in every epoch.
        skipped: images and shards that could not be read.
    """

    name: str
    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()
    transforms_itself: bool = False
    skipped: Skipped = field(default_factory=Skipped)

    def __post_init__(self):
        self.class_names = tuple(self.class_names)
        for which, part in (("train", self.train), ("test", self.test)):
            if not len(part):
                raise ValueError(f"{which} must hold images, got none")
            low, high, num = int(part.labels.min()), int(part.labels.max()), len(self.class_names)
            if low < 0 or high >= num:
                raise ValueError(f"{which} labels must lie in 0..{num - 1}, got {low} to {high}")
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std must have an entry per channel, got {len(self.mean)} and {len(self.std)}")
        present = set(self.train.labels.unique().tolist())
        if missing := [repr(name) for k, name in enumerate(self.class_names) if k not in present]:
            more = f" and {len(missing) - 3:,} others" if len(missing) > 3 else ""
            note = f"no training image has the class {', '.join(missing[:3])}{more}"
            self.notes = (*self.notes, *([note] if note not in self.notes else []))

    def enlarged(self, sides: Iterable[int]) -> list[str]:
        """A note where networks see the images larger than they are kept, at the largest of these sides."""
        largest = max(sides)
        return [f"images of {self.size} pixels are enlarged to {largest}"] if largest > self.size else []

    @property
    def dim(self) -> int:
        """Number of axes of the images besides the channels."""
        part = self.train.fixed if isinstance(self.train, TransformedImages) else self.train
        return part.images.dim() - 2 if isinstance(part, TensorImages) else 2


def channel_statistics(images: ImageSet, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel on [0, 1]; for streamed files they are taken of at most 2,000 images."""
    num = len(images)
    order = torch.arange(num)
    if isinstance(images, StreamedImages) and num > 2000:
        order = torch.linspace(0, num - 1, 2000).long()
    total, squares, count = 0.0, 0.0, 0
    for batch, _ in images.batches([(size, part) for part in order.split(1000)], torch.device("cpu")):
        values = batch.transpose(0, 1).flatten(1) / 255
        total = total + values.sum(1, dtype=torch.float64)
        squares = squares + values.square_().sum(1, dtype=torch.float64)
        count += values.shape[1]
    mean = total / count
    std = (squares / count - mean**2).clamp_min(1e-6).sqrt()  # pyright: ignore[reportAttributeAccessIssue]
    return tuple(mean.tolist()), tuple(std.tolist())  # pyright: ignore[reportAttributeAccessIssue]


def range_notes(images: ImageSet, size: int) -> list[str]:
    """A note where the images use an eighth of the range of values at most, as 12 bits in files of 16 bits do."""
    some = torch.linspace(0, len(images) - 1, min(len(images), 32)).long()
    values = torch.cat([batch.flatten() for batch, _ in images.batches([(size, some)], torch.device("cpu"))])
    low, high = values.min().item(), values.max().item()
    if high - low >= 32:
        return []
    return [
        f"the values of {len(some)} images lie between {low:.0f} and {high:.0f} of 255: rescale images of 12 bits in "
        "files of 16 bits, and floats, which are kept in 8 bits, before they are read"
    ]
