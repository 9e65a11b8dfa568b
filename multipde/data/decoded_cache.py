"""A cache of decoded images for the next start, known by the contents of their files."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multipde.data.checksum import file_digest
from multipde.data.decode import DECODING
from multipde.data.image_data import MEMORY_BYTES
from multipde.networks.user_cache import cache_directory, is_own, replaced


class DecodedCache:
    """One file of decoded images, which belongs to the contents and the order of the image files and to the size.

    Neither paths nor times count, so that no other images can be taken for these. Where files of more than 4 GiB would
    have to be read for that, or no directory can be had, nothing is kept.
    """

    def __init__(self, paths: Sequence[Path], size: int | None):
        self.paths, self.size, self.key = paths, size, None
        try:
            is_small = sum(os.stat(path).st_size for path in paths) <= MEMORY_BYTES
            self.key = _key(paths, size) if is_small else None
        except OSError as error:
            raise ValueError(f"image must be readable, got {error.filename}: {error.strerror}") from None

    @property
    def file(self) -> Path:
        """The file in the cache; OSError or RuntimeError if the user has no directory for it."""
        return cache_directory() / f"images-{self.key}.safetensors"

    def read(self) -> tuple[Tensor, list[str]] | None:
        """The images and the notes that were written with them; None if there is no file that is whole and our own."""
        from safetensors import SafetensorError, safe_open

        try:
            if self.key is None or not is_own(self.file):
                return None
            with safe_open(self.file, "pt") as stored:
                images, record = stored.get_tensor("images"), stored.metadata()
            images = images.clone()  # the tensor of the file would change with it, and crash where it is cut
            notes = json.loads(record["notes"])
            is_right = self._fits(images) and record["sha256"] == _checksum(images)
            return (images, notes) if is_right and all(isinstance(note, str) for note in notes) else None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError):
            return None

    def write(self, images: Tensor, notes: Sequence[str]) -> str | None:
        """Write the images and their notes; where that fails, no run depends on it, and the reason is returned."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if self.key is None:
            return None
        try:
            if _key(self.paths, self.size) != self.key:
                return "the files changed while they were decoded"
            with replaced(self.file) as new:
                save_file({"images": images}, new, {"notes": json.dumps(list(notes)), "sha256": _checksum(images)})
            return None
        except (OSError, RuntimeError, SafetensorError) as error:
            return " ".join(str(error).split())[:200]

    def _fits(self, images: Tensor) -> bool:
        side = images.shape[-1]
        is_fitting = 0 < side <= (self.size or side)
        return images.dtype == torch.uint8 and images.shape == (len(self.paths), 3, side, side) and is_fitting


def _key(paths: Sequence[Path], size: int | None) -> str:
    digest = hashlib.sha256(f"rgb {DECODING} {size}".encode())
    for path in paths:
        digest.update(file_digest(path))
    return digest.hexdigest()[:32]


def _checksum(images: Tensor) -> str:
    pixels: Any = images.contiguous().numpy()
    return hashlib.sha256(pixels).hexdigest()
