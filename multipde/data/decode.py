"""Decoding of image files to square tensors."""

import io
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from multipde.data.pixels import orientation_of, picture_pixels, upright
from multipde.data.tar_members import Member
from multipde.mesh.pyramid import cell_average_matrix, resize_images
from multipde.mesh.separable import apply_along_axes
from multipde.networks.limits import PIXELS

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP")
"""The formats that are tried, whatever the ending of a file; some other decoders of PIL start programs."""
SCALES = (8, 4, 2)
"""A JPEG can be decoded at its size divided by one of these."""
UNREADABLE = "image must be readable"
DECODING = 3
"""Version of the decoding: a change of the code that changes pixels must raise it, so that old caches are ignored."""


def decode_image(
    path: Path | Member, size: int | None = None, tell: Callable[[tuple[int, int], bool], None] | None = None
) -> Tensor:
    """Decode an image file to RGB (3, height, width) in uint8; with a ``size`` it is averaged to a square of this side.

    The file may lie inside a tar file. Grey is repeated in all channels, transparency is dropped, and the picture is
    turned upright as its orientation tag says. All other rules are those of `picture_pixels`; of several frames the
    first is taken. A JPEG of at least twice the wanted size is decoded at 1/2, 1/4 or 1/8 of its own size, as means of
    2x2, 4x4 or 8x8 pixels, which are then averaged to the wanted size. If given, ``tell`` is called with the stored
    (height, width) and whether there are several frames.
    """
    with _opened(path) as file:
        shape = file.height, file.width
        if tell is not None:
            tell(shape, _has_frames(file))
        scale = 1 if size is None else _reduce(file, size)
        file.load()
        image, orientation = picture_pixels(file).expand(3, -1, -1), orientation_of(file)
    if size is None or shape == (size, size):
        return upright(image, orientation)
    if scale == 1:
        averaged = resize_images(image[None].float(), (size, size))[0]
    else:
        averaged = apply_along_axes([_matrix_from_reduced(num, scale, size) for num in shape], image.float())
    return upright(averaged.round().to(torch.uint8), orientation)


def _reduce(file: "Image.Image", size: int) -> int:
    """Make the decoder return means of scale x scale pixels, and return the scale, which is 1 for most formats.

    The scale is the largest at which the cells of the result consist of whole reduced pixels or are at least two of
    them wide. On photographs of quality 90 the result differs by 0.4 to 2.7 grey values (root mean square) from that of
    decoding at full size, mostly in the colours, which such files store at half the size.
    """
    for scale in SCALES:
        if all(num % (scale * size) == 0 or num >= 2 * scale * size for num in file.size):
            width, height = file.size
            return 1 if file.draft(None, (width // scale, height // scale)) is None else scale
    return 1


@lru_cache(maxsize=256)
def _matrix_from_reduced(num: int, scale: int, size: int) -> Tensor:
    """The matrix (size, ceil(num / scale)) that averages reduced pixels over the cells of a mesh, in float32.

    A reduced pixel covers ``scale`` of the num pixels; only the part of the last one that is in the image counts.
    """
    matrix = torch.nn.functional.pad(cell_average_matrix(num, size), (0, -num % scale))
    return matrix.unflatten(1, (-1, scale)).sum(2).float()


def image_sizes(paths: Sequence[Path | Member]) -> tuple[Counter[tuple[int, int]], int]:
    """From the headers of files, the number of every (height, width), and of files with several frames.

    ValueError for a file that is no image.
    """

    def read(path: Path | Member) -> tuple[tuple[int, int], bool]:
        with _opened(path) as file:
            is_turned = file.format in ("JPEG", "MPO", "WEBP") and orientation_of(file) >= 5  # others have to be loaded
            size = (file.width, file.height) if is_turned else (file.height, file.width)
            return size, _has_frames(file)

    with ThreadPoolExecutor() as pool:
        sizes, several = zip(*pool.map(read, paths), strict=True)
    return Counter(sizes), sum(several)


def _has_frames(file: "Image.Image") -> bool:
    """Whether a file holds several frames; the further pictures in an MPO file of a camera do not count."""
    return bool(getattr(file, "is_animated", False)) and file.format != "MPO"


@contextmanager
def _opened(path: Path | Member) -> "Iterator[Image.Image]":
    """Open an image file of one of the `FORMATS` within a context; errors of the decoder become a ValueError.

    The size in the header is checked before memory is allocated.
    """
    from PIL import Image

    try:
        if isinstance(path, Path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("not a regular file")
        with (
            io.BytesIO(path.read()) if isinstance(path, Member) else open(path, "rb") as stream,
            Image.open(stream, formats=FORMATS) as file,
        ):  # Pillow maps files by name, wrongly
            if file.width * file.height > PIXELS:
                raise ValueError(f"more than {PIXELS:,} pixels ({file.width} x {file.height})")
            yield file
    except Exception as error:
        raise ValueError(f"{UNREADABLE}, got {path}: {' '.join(str(error).split())[:200]}") from None


def decode_images(paths: Sequence[Path], size: int) -> Tensor:
    """Decode files to one uint8 tensor (num, 3, size, size); ValueError with the path of the first broken file."""
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda i: images[i].copy_(decode_image(paths[i], size)), range(len(paths))):
            pass
    return images
