"""Streamed data sets of Hugging Face, whose rows come one after the other: copied shard by shard to a local store."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multipde.data.decode import image_sizes
from multipde.data.folder import common_side
from multipde.data.held_back import split_by_class
from multipde.data.image_data import ImageData, channel_statistics, range_notes
from multipde.data.labels import class_names, image_and_label, plain_label, same_names, whole_labels
from multipde.data.pixels import batch_pixels
from multipde.data.shards import SEEN, SHUFFLE_BUFFER, ShardImages
from multipde.data.store_places import new_place
from multipde.data.tar_members import Member, TarMembers
from multipde.networks.inputs import IMAGE_KEYS
from multipde.networks.user_cache import replaced

STORE_BYTES = 64 * 2**30
"""Bytes of images that a store keeps; what was copied first is removed first, and copied again when it is needed."""


def is_row_stream(part: Any) -> bool:
    """Whether this is an ``IterableDataset`` of Hugging Face, as ``load_dataset(..., streaming=True)`` gives it."""
    return type(part).__module__.startswith("datasets.") and type(part).__name__ == "IterableDataset"


class RowStore:
    """The encoded images of a stream in local files, one for each of its shards, which all processes of a node share.

    A shard is read from the stream by the process that needs it first, from its first row on, and its file is there
    whole or not at all. Whenever it is read again, its rows must be the same.
    """

    def __init__(self, stream: Any, place: Path, limit: int):
        self.place, self.limit = place, limit
        self.num = getattr(stream, "num_shards", None) or stream.n_shards
        self._packed: bytes = _dill().dumps(stream)

    def index(self, shard: int) -> dict[str, Any]:
        """The sizes and labels of the rows of a shard, and the checksum of its images."""
        if not self.index_file(shard).exists():
            self._copy(shard)
        return json.loads(self.index_file(shard).read_text(encoding="utf-8"))

    def index_file(self, shard: int) -> Path:
        """The file of `index`, which stays when the images are removed."""
        return self.place / f"{shard:06d}.json"

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """The encoded image at a place in a shard."""
        for _ in range(100):  # another process may remove the file before it is opened
            with suppress(FileNotFoundError):
                return Member(self._rows(shard), offset, size).read()
            self._copy(shard)
        raise ValueError(f"{self.place} must hold a few shards, got {self.limit / 2**30:.3g} GiB for them")

    def _rows(self, shard: int) -> Path:
        return self.place / f"{shard:06d}.rows"

    def _copy(self, shard: int) -> None:
        """Read a shard from the stream into its file."""
        with _alone(self.place / f"{shard:06d}.lock"):
            if self._rows(shard).exists() and self.index_file(shard).exists():
                return
            digest, sizes, labels = hashlib.sha256(), [], []
            try:
                with replaced(self._rows(shard)) as new, open(new, "wb") as file:
                    for image, label in _rows_of(_dill().loads(self._packed), self.num, shard):
                        digest.update(image)
                        sizes.append(file.write(image))
                        labels.append(label)
                    found = {"sizes": sizes, "labels": labels, "sha256": digest.hexdigest()}
                    if self.index_file(shard).exists() and self.index(shard) != found:
                        what = f"got others in shard {shard}"
                        raise ValueError(f"stream must give the same rows whenever it is read, {what}")
                with replaced(self.index_file(shard)) as new:
                    new.write_text(json.dumps(found), encoding="utf-8")
            except OSError as error:
                raise ValueError(f"stream must be readable and {self.place} writable, got {error}") from None
            self._make_room(shard)

    def _make_room(self, kept: int) -> None:
        """Remove what was copied first until the limit is met."""
        files = {}
        for path in self.place.glob("*.rows"):
            with suppress(FileNotFoundError):
                files[path] = path.stat()
        total = sum(status.st_size for status in files.values())
        for path in sorted(files, key=lambda path: files[path].st_mtime_ns):
            if total > self.limit and path != self._rows(kept):
                path.unlink(missing_ok=True)
                total -= files[path].st_size


@dataclass(frozen=True)
class Row(Member):
    """An image of a store, in the shard of this number."""

    store: RowStore
    number: int

    def read(self) -> bytes:
        return self.store.read(self.number, self.offset, self.size)

    def __str__(self) -> str:
        return f"the image at byte {self.offset} of shard {self.number} of the stream"


class Rows(TarMembers):
    """The images of a store by their places."""

    def __init__(self, store: RowStore, shard: np.ndarray, offset: np.ndarray, size: np.ndarray):
        super().__init__([store.index_file(k) for k in range(store.num)], shard, offset, size)
        self.store = store

    def __getitem__(self, index: int) -> Row:  # pyright: ignore[reportIncompatibleMethodOverride]
        k = int(self.shard[index])
        return Row(self.shards[k], int(self.offset[index]), int(self.size[index]), self.store, k)


def load_streams(
    pair: Sequence[Any], size: int | None, share: float | None, buffer: int = SHUFFLE_BUFFER, limit: int = STORE_BYTES
) -> ImageData:
    """The images of a pair (train, test) of streams, or of one stream (train,) of which a share is held back.

    Each stream is read once at the start, since numbers and labels of its rows are known only then, and copied to
    files in the cache of the user, which are removed at the end. Order, division by processes and resume are then those
    of shards, see `ShardImages`.

    Args:
        limit: bytes of images that each store keeps.

    Raises:
        ValueError: a row is no image with its label, a stream is empty or gives other rows when it is read again.
    """
    read = [_read(stream, which, limit) for stream, which in zip(pair, ("train", "test"), strict=False)]
    names = same_names([(class_names(s, which), which) for s, which in zip(pair, ("train", "test"), strict=False)])
    if names is None and any(isinstance(label, str) for _, labels in read for label in labels):
        if not all(isinstance(label, str) for _, labels in read for label in labels):
            raise ValueError("labels must all be names or all be numbers where a stream names no classes, got both")
        names = tuple(sorted({str(label) for _, labels in read for label in labels}))
    parts = [
        ShardImages(rows, whole_labels(labels, names, which), buffer=buffer)
        for (rows, labels), which in zip(read, ("train", "test"), strict=False)
    ]
    if len(parts) == 1 and share is not None:
        parts = [parts[0].take(indices) for indices in split_by_class(parts[0].labels, share)]  # pyright: ignore
    train, test = parts
    num, stores = len(train) + len(test), [rows.store for rows, _ in read]
    names = names or tuple(str(k) for k in range(1 + max(int(part.labels.max()) for part in parts)))
    counts, _ = image_sizes(train.take(torch.linspace(0, len(train) - 1, min(len(train), SEEN)).long()).paths)
    side, notes = common_side(counts, size)
    notes.append(f"{num:,} images streamed from {sum(store.num for store in stores):,} shards, by {stores[0].place}")
    statistics = channel_statistics(train, side)
    notes += range_notes(train, side)
    return ImageData("own", train, test, names, side, *statistics, tuple(notes))


def _read(stream: Any, which: str, limit: int) -> tuple[Rows, list[int | str]]:
    """The images of a stream and their labels."""
    store = RowStore(stream, new_place(), limit)
    indices = [store.index(k) for k in range(store.num)]
    labels = [label for index in indices for label in index["labels"]]
    if not labels:
        raise ValueError(f"{which} must hold images, got none")
    sizes = [np.array(index["sizes"], dtype=np.int64) for index in indices]
    shard = np.repeat(np.arange(store.num, dtype=np.int32), [len(part) for part in sizes])
    offset = np.concatenate([np.cumsum(part) - part for part in sizes])
    return Rows(store, shard, offset, np.concatenate(sizes)), labels


def _rows_of(stream: Any, num: int, shard: int) -> Iterator[tuple[bytes, int | str]]:
    """The encoded image and the label of every row of a shard."""
    part = stream.shard(num_shards=num, index=shard) if num > 1 else stream
    features: Any = getattr(part, "features", None) or {}  # they are unknown after a function was mapped
    for key in IMAGE_KEYS:
        if hasattr(features.get(key), "decode"):  # the bytes of the files, not their pixels
            part = part.cast_column(key, type(features[key])(decode=False))
    for number, row in enumerate(part):
        image, label = image_and_label(row, f"row {number} of shard {shard} of the stream")
        try:
            yield _encoded(image), plain_label(label)
        except (ValueError, TypeError, OSError) as error:
            text = " ".join(str(error).split())[:200]
            raise ValueError(f"row {number} of shard {shard} of the stream must be an image, got {text}") from None


def _encoded(image: Any) -> bytes:
    """The bytes of an image file: as they are in the row, or of the pixels as PNG."""
    from PIL import Image

    if isinstance(image, Mapping):
        return image["bytes"] if image.get("bytes") is not None else Path(image["path"]).read_bytes()
    if not isinstance(image, Image.Image):
        pixels = batch_pixels([image], "images")[0].permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Within the context, no other process of this machine is in one with the same file."""
    with open(lock, "wb") as file:
        with suppress(ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _dill() -> Any:
    """The package that comes with `datasets` and also packs functions without a name for other processes."""
    import dill  # pyright: ignore[reportMissingImports]

    return dill
