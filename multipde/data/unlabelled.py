"""Images without labels: all image files below a folder, flat or in classes."""

from pathlib import Path

import torch

from multipde.data.decode import decode_images, image_sizes
from multipde.data.folder import image_files
from multipde.data.image_data import MEMORY_BYTES
from multipde.data.images import ImageSet, TensorImages
from multipde.data.streamed import StreamedImages

LEAST_IMAGES = 50
"""The smallest number of images of which some can be held back and the others say something about all."""


def load_unlabelled(root: Path, size: int) -> ImageSet:
    """All images below a folder as squares of side ``size``, in the order of their paths, with all labels zero.

    Raises:
        ValueError: there is no such folder, it has too few images, one of them is broken, or some are smaller than
            the size.
    """
    if not root.is_dir():
        raise ValueError(f"images must be a directory, got {root}")
    paths, _ = image_files(root)
    if len(paths) < LEAST_IMAGES:
        raise ValueError(f"images must be at least {LEAST_IMAGES} files, got {len(paths)} below {root}")
    labels = torch.zeros(len(paths), dtype=torch.long)
    smallest = min(min(shape) for shape in image_sizes(paths)[0])
    if smallest < size:
        raise ValueError(f"images must have at least the network's {size} pixels per side, got one with {smallest}")
    if 3 * size**2 * len(paths) > MEMORY_BYTES:
        return StreamedImages(paths, labels)
    return TensorImages(decode_images(paths, size), labels)
