"""Decoding of image files to square tensors, and a cache of the decoded images for the next start."""

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from multipde.mesh.pyramid import cell_average_matrix, resize_images
from multipde.mesh.separable import apply_along_axes

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP")
"""The formats that are tried, whatever the ending of a file; some other decoders of PIL start programs."""
MANY_PIXELS = 64 * 10**6
"""An image with more pixels than this is refused as a decompression bomb."""
SCALES = (8, 4, 2)
"""A JPEG can be decoded at its size divided by one of these."""
DECODING = 2
"""Version of the decoding: a change of the code that changes pixels must raise it, so that old caches are ignored."""


def decode_image(path: Path, size: int | None = None) -> Tensor:
    """Decode an image file to RGB (3, height, width) in uint8; with a ``size`` it is averaged to a square of this side.

    Grey is repeated in all channels, and transparency is dropped. A JPEG of at least twice the wanted size is decoded
    at 1/2, 1/4 or 1/8 of its own size, as means of 2x2, 4x4 or 8x8 pixels, which are then averaged to the wanted size.
    """
    import numpy as np

    with _opened(path) as file:
        shape = file.height, file.width
        scale = 1 if size is None else _reduce(file, size)
        pixels = torch.from_numpy(np.array(file.convert("RGB")))
    image = pixels.permute(2, 0, 1).contiguous()
    if size is None or shape == (size, size):
        return image
    if scale == 1:
        averaged = resize_images(image[None].float(), (size, size))[0]
    else:
        averaged = apply_along_axes([_matrix_from_reduced(num, scale, size) for num in shape], image.float())
    return averaged.round().to(torch.uint8)


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


def image_sizes(paths: Sequence[Path]) -> Counter[tuple[int, int]]:
    """The number of files of every (height, width), from their headers; ValueError for a file that is no image."""

    def read(path: Path) -> tuple[int, int]:
        with _opened(path) as file:
            return file.height, file.width

    with ThreadPoolExecutor() as pool:
        return Counter(pool.map(read, paths))


@contextmanager
def _opened(path: Path) -> "Iterator[Image.Image]":
    """Open an image file of one of the `FORMATS` within a context; errors of the decoder become a ValueError.

    The size in the header is checked before memory is allocated.
    """
    from PIL import Image

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("not a regular file")
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MANY_PIXELS:
                raise ValueError(f"more than {MANY_PIXELS:,} pixels ({file.width} x {file.height})")
            yield file
    except Exception as error:
        raise ValueError(f"image must be readable, got {path}: {' '.join(str(error).split())[:200]}") from None


def decode_images(paths: Sequence[Path], size: int) -> Tensor:
    """Decode files to one uint8 tensor (num, 3, size, size); ValueError with the path of the first broken file."""
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda i: images[i].copy_(decode_image(paths[i], size)), range(len(paths))):
            pass
    return images


class DecodedCache:
    """A file of decoded images, which is valid for the same size, paths, lengths and modification times of files."""

    def __init__(self, paths: Sequence[Path], size: int | None):
        self.num = len(paths)
        digest = hashlib.sha256(f"rgb {DECODING} {size}".encode())
        for path in paths:
            stat = os.stat(path)
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        self.file = cache_directory() / f"images-{digest.hexdigest()[:24]}.safetensors"

    def read(self) -> tuple[Tensor, list[str]] | None:
        """The images and the notes that were written with them; None if there is no readable file."""
        from safetensors import SafetensorError, safe_open

        if not self.file.exists():
            return None
        try:
            with safe_open(self.file, "pt") as stored:
                images, notes = stored.get_tensor("images"), json.loads(stored.metadata()["notes"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError):
            return None
        is_ours = images.dtype == torch.uint8 and images.dim() == 4 and len(images) == self.num
        return (images, notes) if is_ours else None

    def write(self, images: Tensor, notes: Sequence[str]) -> None:
        """Write the images and their notes; an error in writing is ignored, since no run depends on the cache."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        partial = self.file.with_suffix(f".{os.getpid()}.partial")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"images": images}, partial, metadata={"notes": json.dumps(list(notes))})
            os.replace(partial, self.file)
        except (OSError, SafetensorError):
            partial.unlink(missing_ok=True)


def cache_directory() -> Path:
    """The directory of decoded images: MULTIPDE_CACHE if that is set, else one in the user's cache directory."""
    if chosen := os.environ.get("MULTIPDE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multipde"
