"""What the images of a training were: SHA-256 checksums of pixels, of names and lengths, and of streamed files."""

import hashlib
import stat
import threading
from pathlib import Path
from typing import Any

from multipde.data.image_data import ImageData
from multipde.data.images import ImageSet, TensorImages
from multipde.data.streamed import StreamedImages
from multipde.data.transformed import TransformedImages

QUICK_BYTES = 2**28
"""So many bytes of streamed files are read before the training begins; more are read while it goes on."""


def data_checksum(images: ImageData) -> str:
    """SHA-256 of training and test images with their labels; of names and lengths where files are streamed."""
    digest = hashlib.sha256()
    for part in (images.train, images.test):
        _add(digest, part)
    return digest.hexdigest()


class FileChecksum:
    """SHA-256 of the contents of all streamed files of a data set, computed by a thread beside the training.

    Up to ``quick_bytes`` are read at once. Nothing but the files themselves is opened, and no program is run.

    Args:
        images: streamed; for others there is no checksum, since `data_checksum` has seen their pixels.
    """

    def __init__(self, images: ImageData, quick_bytes: int = QUICK_BYTES):
        parts = [part for part in (images.train, images.test) if isinstance(part, StreamedImages)]
        self._parts, self._found, self._error = parts, None, None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, name="multipde-file-checksum", daemon=True)
        if parts:
            self._thread.start()
            if sum(path.stat().st_size for part in parts for path in part.paths) <= quick_bytes:
                self._thread.join()

    def result(self, wait: bool = False) -> str | None:
        """The checksum; None as long as it is not known, and where nothing is streamed.

        Raises:
            ValueError: a file that cannot be read.
        """
        while wait and self._thread.is_alive():
            self._thread.join(0.5)  # signals are heeded in between
        if self._error is not None:
            raise self._error
        return self._found

    def close(self) -> None:
        """Give up what is not read yet."""
        self._ended.set()

    def _read(self) -> None:
        digest = hashlib.sha256()
        try:
            for part in self._parts:
                for path, label in zip(part.paths, part.labels.tolist(), strict=True):
                    if self._ended.is_set():
                        return
                    digest.update(f"{label} {path.parent.name}/{path.name} ".encode(errors="surrogateescape"))
                    digest.update(_file_digest(path))
            self._found = digest.hexdigest()
        except OSError as error:
            self._error = ValueError(f"image must be readable, got {path} ({error.strerror})")


def _file_digest(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(0, "no regular file", str(path))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _add(digest: Any, part: ImageSet) -> None:
    if isinstance(part, TransformedImages):
        part = part.fixed
    if isinstance(part, StreamedImages):
        for path in part.paths:
            line = f"{path.parent.name}/{path.name} {path.stat().st_size}\n"
            digest.update(line.encode(errors="surrogateescape"))
    elif isinstance(part, TensorImages):
        digest.update(repr(tuple(part.images.shape)).encode())
        digest.update(part.images.contiguous().numpy())
    digest.update(part.labels.contiguous().numpy())
