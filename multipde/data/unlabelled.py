"""Images without labels: all image files below a folder, flat or in classes, or images given in Python."""

import warnings
from pathlib import Path
from typing import Any

import torch

from multipde.data.bad_images import offering_to_skip, sound_files
from multipde.data.decode import decode_images, image_sizes
from multipde.data.folder import image_files, left_out_text
from multipde.data.image_data import MEMORY_BYTES, ImageData
from multipde.data.images import ImageSet, TensorImages
from multipde.data.pixels import batch_pixels
from multipde.data.streamed import StreamedImages

LEAST_IMAGES = 50
"""The smallest number of images of which some can be held back and the others say something about all."""


def load_unlabelled(source: Any, size: int, skip_bad: bool = False) -> ImageSet:
    """Images without labels, with all labels zero.

    Args:
        source: a folder, of which all image files are taken, flat or in classes, in the order of their paths, and made
            squares of side ``size``; a warning says what is left out. Or images (N, C, *size) as a tensor or array,
            uint8 or on [0, 1]. Or an `ImageData`, of which the training images are taken, with their labels.
        size: the smallest side that is needed.
        skip_bad: leave out images of a folder that cannot be decoded; a warning counts them.

    Raises:
        ValueError: there is no such folder, there are too few images, one of them is broken, or some are smaller than
            the size.
    """
    if isinstance(source, ImageData):
        return _large_enough(source.train, source.size, size)
    if not isinstance(source, (str, Path)):
        images = batch_pixels(source, "images")
        if images.dim() < 3 or len(set(images.shape[2:])) != 1:
            raise ValueError(f"images must be square and have the shape (N, C, *size), got {tuple(images.shape)}")
        return _large_enough(TensorImages(images, torch.zeros(len(images), dtype=torch.long)), images.shape[-1], size)
    root = Path(source)
    if not root.is_dir():
        raise ValueError(f"images must be a directory, got {root}")
    paths, left_out = image_files(root)
    if left_out:
        warnings.warn(left_out_text(root, left_out), stacklevel=3)
    if skip_bad:
        paths, notes = sound_files(paths)
        for note in notes:
            warnings.warn(note, stacklevel=3)
    labels = torch.zeros(len(paths), dtype=torch.long)
    with offering_to_skip():
        smallest = min(map(min, image_sizes(paths)[0])) if paths else 0
        streamed = _large_enough(StreamedImages(paths, labels), smallest, size)
        is_large = 3 * size**2 * len(paths) > MEMORY_BYTES
        return streamed if is_large else TensorImages(decode_images(paths, size), labels)


def _large_enough(images: ImageSet, smallest: int, size: int) -> ImageSet:
    if len(images) < LEAST_IMAGES:
        raise ValueError(f"images must be at least {LEAST_IMAGES}, got {len(images)}")
    if smallest < size:
        raise ValueError(f"images must have at least the network's {size} pixels per side, got {smallest}")
    return images
