"""What `predict` classifies: image files, folders of them, Pillow images, arrays and tensors."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch
from torch import Tensor

from multipde.data.bad_images import offering_to_skip, sound_files
from multipde.data.decode import decode_image
from multipde.data.folder import image_files, left_out_text
from multipde.data.pixels import batch_pixels, image_pixels
from multipde.mesh.pyramid import resize_images
from multipde.networks.model_spec import ModelSpec
from multipde.runtime.console import Log

if TYPE_CHECKING:
    from PIL import Image

Picture = Union[str, Path, Tensor, np.ndarray, "Image.Image"]
"""A file, a folder, or an image in memory in uint8 or floats on [0, 1]: a tensor (C, H, W), an array (H, W[, C])."""


def given_pictures(images: Any, log: Log, skip_bad: bool = False) -> list[Path | Tensor]:
    """The files, and the uint8 pixels (C, H, W) of images in memory, in their order.

    Args:
        images: one image, a batch (N, C, H, W) as a tensor or (N, H, W[, C]) as an array, or a sequence of images.
        log: is told which files of a folder are left out.
        skip_bad: leave out files that cannot be decoded, too.

    Raises:
        ValueError: there is none, or one is no image.
    """
    if isinstance(images, (Tensor, np.ndarray)) and images.ndim == 4 and len(images):
        return list(batch_pixels(images, "images"))
    one_by_one = isinstance(images, Sequence) and not isinstance(images, (str, os.PathLike))
    found: list[Path | Tensor] = []
    for number, image in enumerate(images if one_by_one else [images]):
        if isinstance(image, (str, os.PathLike)):
            found += _files(Path(image), log)
        else:
            pixels = image_pixels(image, f"image {number}")
            if pixels.dim() != 3:
                raise ValueError(f"image {number} must be (C, H, W), got shape {tuple(pixels.shape)}")
            found.append(pixels)
    if skip_bad:
        sound, notes = sound_files([each for each in found if isinstance(each, Path)])
        left = set(sound)
        found = [each for each in found if not isinstance(each, Path) or each in left]
        for note in notes:
            log.say(f"note: {note}")
    if not found:
        raise ValueError("images must name at least one file or folder, or hold one image, got none")
    return found


@dataclass
class Shapes:
    """Counts pictures that are not square, and files of which only the first frame is seen, while they are read."""

    num: int = 0
    num_odd: int = 0
    num_several: int = 0

    def add(self, shape: tuple[int, ...], has_frames: bool = False) -> None:
        """Count a picture of this (height, width)."""
        height, width = shape
        self.num += 1
        self.num_odd += height != width
        self.num_several += has_frames

    def notes(self) -> list[str]:
        """What the user is told of them."""
        notes = []
        if self.num_odd:
            odd, num = f"{self.num_odd:,}", f"{self.num:,}"
            notes.append(f"{odd} of {num} pictures are not square: squeezed into squares, not cropped")
        if self.num_several:
            notes.append(f"{self.num_several:,} files hold several frames: the first is taken")
        return notes


def square_picture(picture: Path | Tensor, spec: ModelSpec, fit: str, sides: Sequence[int], shapes: Shapes) -> Tensor:
    """The picture as a square uint8 tensor: of the size of the network, or with "net" of one that it can have.

    The latter is one of the sides, which are in increasing order, if there are any. The picture is counted in shapes.
    """
    add, size = shapes.add, spec.image_sizes[0]
    if isinstance(picture, Path):
        with offering_to_skip():
            image = decode_image(picture, size if fit == "image" else None, add)
        if fit == "image":
            return image
    else:
        add(tuple(picture.shape[1:]))
        image = picture.expand(3, -1, -1) if len(picture) == 1 and spec.in_channels == 3 else picture
    if len(image) != spec.in_channels:
        raise ValueError(f"images must have the {spec.in_channels} channels of the network, got {len(image)}")
    side = size
    if fit == "net":
        multiple = spec.size_multiple * spec.detail
        side = min(image.shape[1:]) // multiple * multiple
        if sides:
            multiple, side = sides[0], max((s for s in sides if s <= side), default=0)
        if not side:
            what = picture if isinstance(picture, Path) else f"{image.shape[1]}x{image.shape[2]}"
            raise ValueError(f"image must have at least {multiple} pixels each way, got {what}; type --fit image")
    if image.shape[1:] == (side, side):
        return image
    return resize_images(image[None].float(), (side, side))[0].round().to(torch.uint8)


def _files(image: Path, log: Log) -> list[Path]:
    inside, left_out = image_files(image) if image.is_dir() else ([image], None)
    if not inside:
        raise ValueError(f"image folder must hold images, got none in {image}")
    if left_out:
        log.say(f"note: {left_out_text(image, left_out)}")
    return inside
