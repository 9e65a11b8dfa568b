"""SHA-256 checksums of the images of a training: of their pixels, or of their files where these are streamed."""

import hashlib
import os
import stat
import threading
from pathlib import Path
from typing import Any

from multipde.data.image_data import ImageData
from multipde.data.images import ImageSet, TensorImages
from multipde.data.streamed import StreamedImages
from multipde.data.transformed import TransformedImages

QUICK_BYTES = 2**28
"""Streamed files of at most this many bytes in all are read before the training begins, others while it runs."""


def data_checksum(images: ImageData) -> str:
    """SHA-256 of all images and labels; of streamed files names and lengths, of random transforms one fixed draw."""
    digest = hashlib.sha256()
    _add(digest, images.train)
    _add(digest, images.test)
    return digest.hexdigest()


class FileChecksum:
    """SHA-256 of the contents of all streamed files of a data set, computed by a thread while the training runs.

    If the files have at most ``quick_bytes`` in all, they are read before the constructor returns. Only the files
    themselves are opened, and no program is run. For images that are not streamed, `data_checksum` suffices.
    """

    def __init__(self, images: ImageData, quick_bytes: int = QUICK_BYTES):
        parts = [part for part in (images.train, images.test) if isinstance(part, StreamedImages)]
        self._parts, self._found, self._error = parts, None, None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, name="multipde-file-checksum", daemon=True)
        if parts:
            self._thread.start()
            if sum(path.stat().st_size for part in parts for *_, path in part.files()) <= quick_bytes:
                self._thread.join()

    def result(self, wait: bool = False) -> str | None:
        """The checksum; None while it is not yet known, and if no files are streamed."""
        while wait and self._thread.is_alive():
            self._thread.join(0.5)  # in between, Python can handle signals
        if self._error is not None:
            raise self._error
        return self._found

    def close(self) -> None:
        """Stop reading; the checksum stays unknown."""
        self._ended.set()

    def _read(self) -> None:
        digest = hashlib.sha256()
        try:
            for part in self._parts:
                for name, label, path in part.files():
                    if self._ended.is_set():
                        return
                    digest.update(f"{label}{name} ".encode(errors="surrogateescape"))
                    digest.update(file_digest(path))
            self._found = digest.hexdigest()
        except OSError as error:
            self._error = ValueError(f"image must be readable, got {path} ({error.strerror})")


def file_digest(path: Path) -> bytes:
    """SHA-256 of the contents of a regular file; OSError for anything else."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "no regular file", str(path))
    with open(path, "rb", buffering=0) as file:
        if status.st_size < 2**20:  # the function below takes a large buffer for every file
            return hashlib.sha256(file.readall()).digest()
        return hashlib.file_digest(file, "sha256").digest()


def _add(digest: Any, part: ImageSet) -> None:
    if isinstance(part, TransformedImages):
        part = part.fixed
    if isinstance(part, StreamedImages):
        for name, _, path in part.files():
            digest.update(f"{name} {path.stat().st_size}\n".encode(errors="surrogateescape"))
    elif isinstance(part, TensorImages):
        digest.update(repr(tuple(part.images.shape)).encode())
        digest.update(part.images.contiguous().numpy())
    digest.update(part.labels.contiguous().numpy())
