"""Writing of shards: the image files of a folder of classes, copied into tar files as WebDataset has them."""

import io
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from multipde.data.decode import image_sizes
from multipde.data.folder import left_out_text, list_folder
from multipde.data.images import stream
from multipde.data.shards import SHARD_INDEX
from multipde.runtime.console import Log
from multipde.storage.files import write_directory
from multipde.storage.records import json_bytes
from multipde.storage.run_directory import check_new


def write_shards(
    root: str | Path, out: str | Path, *, images_per_shard: int = 1000, log: Log | None = None
) -> dict[str, int]:
    """Write the images of a folder, ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val``), as shards for training.

    The files are copied byte for byte into ``train-000000.tar``, ``train-000001.tar``, ... in one fixed random order,
    which mixes the classes, each as KEY.jpg (or its own ending) and KEY.cls with the number of its class. Beside them
    an index has the names of the classes, and images and bytes of every shard. The same files under the same names give
    the same bytes again, whenever and by whomever they are written. The directory is there whole or not at all.

    Args:
        out: a directory that does not exist.
        images_per_shard: number of images in every shard but the last; one shard is in memory at a time.

    Returns:
        The number of images of each part.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: the folder lacks a part or a class, a file is no image, or the number is not positive.
        OSError: the directory cannot be written.
    """
    root, out, log = Path(root).expanduser(), Path(out), log or Log(quiet=True)
    if images_per_shard < 1:
        raise ValueError(f"images_per_shard must be positive, got {images_per_shard}")
    check_new(out)
    left_out: Counter[str] = Counter()
    names, parts = list_folder(root, left_out)
    if +left_out:
        log.say(f"note: {left_out_text(root, +left_out)}")
    for paths, _ in parts.values():
        image_sizes(paths)  # raises for a file that is no image, before anything is written
    index: dict[str, Any] = {"format": 1, "classes": names, "shards": {}}

    def files() -> Iterator[tuple[str, bytes]]:
        for part, (paths, labels) in parts.items():
            order = torch.randperm(len(paths), generator=stream("shards", part))
            for number, chosen in enumerate(order.split(images_per_shard)):
                name, start = f"{part}-{number:06d}.tar", number * images_per_shard
                data = shard_bytes([(paths[i], int(labels[i])) for i in chosen.tolist()], start)
                index["shards"][name] = {"images": len(chosen), "bytes": len(data)}
                yield name, data
        yield SHARD_INDEX, json_bytes(index)

    write_directory(out, files())
    counts = {part: len(paths) for part, (paths, _) in parts.items()}
    told = ", ".join(f"{num:,} of {part}" for part, num in counts.items())
    log.say(f"{told} images in {len(index['shards']):,} shards; train with: --data webdataset --root {out}")
    return counts


def shard_bytes(images: Sequence[tuple[Path, int]], start: int) -> bytes:
    """A tar file of images and their labels, whose keys count from ``start``; only names and contents matter."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (path, label) in enumerate(images, start):
            key = f"{number:08d}"
            for name, data in ((f"{key}{path.suffix.lower()}", path.read_bytes()), (f"{key}.cls", str(label).encode())):
                entry = tarfile.TarInfo(name)  # time, owner and rights have fixed values
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return made.getvalue()
