"""``multipde bench input``: images per second that the input gives on every level, and by reading at full size."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multipde.data.augmentation import Augmentation
from multipde.data.decode import decode_image
from multipde.data.feed import Feed
from multipde.data.images import Batch, ImageSet, Key, Part, TensorImages
from multipde.data.shapes import FINE_SIZE, render_shapes
from multipde.data.shards import read_shards
from multipde.data.streamed import StreamedImages
from multipde.mesh.pyramid import prolong_images, resize_images
from multipde.networks.inputs import Normalize
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.runtime.table import table_of
from multipde.storage.shard_writer import shard_bytes
from multipde.studies.bench.timing import alternated
from multipde.studies.study import Study, matching

SHARD = 50
"""Number of images in a shard."""

COLUMNS = """name: {source} | size: {size} | images/s: {images_per_second:.0f} | full size, images/s: {full:.0f}
    | times faster: {full_over_own:.2f} | rms difference: {rms:.2f}"""


def input_study(
    out: Path | None = None,
    *,
    side: int = 256,
    coarsest: int = 8,
    batch: int = 125,
    num_batches: int = 2,
    repeats: int = 7,
    device: str = "auto",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Time augmented and normalised training batches, from streamed JPEG files, from shards and from images in memory.

    The baseline decodes every file at its full size, or averages each batch in memory from the full size to the size of
    the level. All are timed alternately at every size; times are medians. ``rms`` is the difference of own and baseline
    in grey values.

    Args:
        side: side of the images in pixels, which is also the finest level.
        coarsest: side of the first level; each further level doubles it, up to ``side``.
        num_batches: number of batches in an epoch; one epoch is timed at a time.
    """
    for name, value in (("side", side), ("coarsest", coarsest), ("batch", batch), ("num_batches", num_batches)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    where = Compute.of(device).device
    study = Study(out, {"study": "input"}, ("source", "size"), anew=True, log=log)
    pictures, labels = render_shapes(batch * num_batches, min(side, FINE_SIZE))
    enlarged = [prolong_images(part.float(), side, order=1) for part in pictures.split(batch)]  # smooth, as photographs
    images = torch.cat([part.round().to(torch.uint8) for part in enlarged])
    with tempfile.TemporaryDirectory() as directory:
        paths = write_jpegs(images, Path(directory))
        shards = write_shards(paths, labels, Path(directory))
        decoded = _FullSize(labels, lambda index: torch.stack([decode_image(paths[i]) for i in index.tolist()]))
        rivals = {
            "streamed": (StreamedImages(paths, labels, num_workers=0), decoded),
            "shards": (shards, decoded),
            "memory": (TensorImages(images, labels), _FullSize(labels, lambda index: images[index])),
        }
        for size in sorted({min(coarsest * 2**k, side) for k in range(side.bit_length() + 1)}):
            ways = {(source, k): images for source, pair in rivals.items() for k, images in enumerate(pair)}
            seconds = alternated({k: _epoch(images, size, batch, where) for k, images in ways.items()}, repeats, where)
            for source, (own, full) in rivals.items():
                found = {"own_seconds": seconds[source, 0], "full_seconds": seconds[source, 1]}
                found["images_per_second"] = round(len(labels) / seconds[source, 0], 1)
                found["full_over_own"] = round(seconds[source, 1] / seconds[source, 0], 3)
                found["rms"] = round(_difference(own, full, size), 3)
                study.add(source, size, side=side, batch=batch, num=len(labels), **found)
                study.log.say(f"{source}, {size}: {found['images_per_second']:g} images/s")
    title = f"input of {side}x{side} images, batch {batch}, one process"
    ordered = [row for source in rivals for row in matching(study.rows, source=source)]
    rows = [row | {"full": row["num"] / row["full_seconds"]} for row in ordered]
    return study.close({title: table_of(rows, COLUMNS)})


@dataclass
class _FullSize:
    """The baseline: an image set that reads images at their full size for every batch, and then averages them."""

    labels: Tensor
    fetch: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, parts: Sequence[Part], device: torch.device, key: Key | None = None) -> Iterator[Batch]:
        for size, index in parts:
            yield resize_images(self.fetch(index).to(device).float(), size), self.labels[index].to(device)


def write_jpegs(images: Iterable[Tensor], directory: Path) -> list[Path]:
    """Write images (3, H, W) in uint8 to files."""
    from PIL import Image

    paths = []
    for i, image in enumerate(images):
        paths.append(directory / f"{i}.jpg")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1], quality=90)
    return paths


def write_shards(paths: Sequence[Path], labels: Tensor, directory: Path) -> StreamedImages:
    """The same files in shards, which are decoded in this process."""
    shards = []
    for start in range(0, len(paths), SHARD):
        shards.append(directory / f"train-{start // SHARD:06d}.tar")
        labelled = list(zip(paths, labels.tolist(), strict=True))[start : start + SHARD]
        shards[-1].write_bytes(shard_bytes(labelled, start))
    return replace(read_shards(shards), num_workers=0)


def _epoch(images: ImageSet, size: int, batch: int, device: torch.device) -> Callable[[], None]:
    feed = Feed(images, Normalize((0.5,) * 3, (0.25,) * 3), Compute(device))

    def call() -> None:
        for _ in feed.training(
            torch.arange(len(images)), [(size, 1.0)], batch, key=(0, "input"), augment=Augmentation()
        ):
            pass

    return call


def _difference(own: ImageSet, full: ImageSet, size: int) -> float:
    """Root mean square over the first images, in grey values."""
    parts = [(size, torch.arange(min(len(own), 100)))]
    (a, _), (b, _) = (next(iter(images.batches(parts, torch.device("cpu")))) for images in (own, full))
    return (a - b).square().mean().sqrt().item()
