"""``multipde bench input``: images per second of the input on every level, against averaging at the full size."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multipde.data.batches import Normalize
from multipde.data.decode import decode_image
from multipde.data.feed import Feed
from multipde.data.images import Batch, ImageSet, Key, Part, TensorImages
from multipde.data.shapes import FINE_SIZE, render_shapes
from multipde.data.streamed import StreamedImages
from multipde.mesh.pyramid import prolong_images, resize_images
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.studies.bench.timing import alternated, recorded


def input_study(
    out: Path | None,
    *,
    side: int = 256,
    coarsest: int = 8,
    batch: int = 125,
    num_batches: int = 2,
    repeats: int = 7,
    device: str = "auto",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Training batches, augmented and normalised, of JPEG files that are streamed and of images in memory; a table.

    The rival takes every image at its full size and averages it to the level: decodes the whole file, or averages each
    batch anew. Both are timed in turn in this one process; times are medians.

    Args:
        side: of the images, in pixels; the finest level.
        coarsest: the first level; the others double it up to the side.
        num_batches: of an epoch; one epoch is timed at a time.
        out: file to which the rows are appended; None for none.

    Returns:
        A row per source of images and size; ``rms`` is how far its images are from those of the rival, in grey values.

    Raises:
        ValueError: a number that is not positive.
    """
    for name, value in (("side", side), ("coarsest", coarsest), ("batch", batch), ("num_batches", num_batches)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    log, where, rows = log or Log(quiet=True), Compute.of(device).device, []
    pictures, labels = render_shapes(batch * num_batches, min(side, FINE_SIZE))
    images = torch.cat([_smooth(part, side) for part in pictures.split(batch)])
    with tempfile.TemporaryDirectory() as directory:
        paths = _write_jpegs(images, Path(directory))
        rivals = {
            "streamed": (
                StreamedImages(paths, labels, num_workers=0),
                _FullSize(labels, lambda index: torch.stack([decode_image(paths[i]) for i in index.tolist()])),
            ),
            "memory": (TensorImages(images, labels), _FullSize(labels, lambda index: images[index])),
        }
        for source, (own, full) in rivals.items():
            for size in _levels(coarsest, side):
                calls = {
                    name: _epoch(image_set, size, batch, where) for name, image_set in (("own", own), ("full", full))
                }
                seconds = alternated(calls, repeats, where)
                row = {
                    "study": "input",
                    "source": source,
                    "size": size,
                    "side": side,
                    "batch": batch,
                    "num": len(labels),
                    **{f"{key}_seconds": value for key, value in seconds.items()},
                    "images_per_second": round(len(labels) / seconds["own"], 1),
                    "full_over_own": round(seconds["full"] / seconds["own"], 3),
                    "rms": round(_difference(own, full, size), 3),
                }
                rows.append(recorded(row, out))
    log.table([_row(row) for row in rows], f"input of {side}x{side} images, batch {batch}, one process")
    return rows


@dataclass
class _FullSize:
    """Images that are fetched whole for every batch and averaged there."""

    labels: Tensor
    fetch: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, parts: Sequence[Part], device: torch.device, key: Key | None = None) -> Iterator[Batch]:
        for size, index in parts:
            yield resize_images(self.fetch(index).to(device).float(), size), self.labels[index].to(device)


def _levels(coarsest: int, side: int) -> list[int]:
    sizes = [min(coarsest, side)]
    while sizes[-1] < side:
        sizes.append(min(2 * sizes[-1], side))
    return sizes


def _smooth(pictures: Tensor, side: int) -> Tensor:
    """Pictures between the pixels of which there is something to see, as in photographs."""
    return prolong_images(pictures.float(), side, order=1).round().to(torch.uint8)


def _write_jpegs(images: Tensor, directory: Path) -> list[Path]:
    from PIL import Image

    paths = [directory / f"{i}.jpg" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=90)
    return paths


def _epoch(images: ImageSet, size: int, batch: int, device: torch.device) -> Callable[[], None]:
    feed = Feed(images, Normalize((0.5,) * 3, (0.25,) * 3), Compute(device))

    def call() -> None:
        for _ in feed.training(torch.arange(len(images)), [(size, 1.0)], batch, key=(0, "input"), augment=True):
            pass

    return call


def _difference(own: ImageSet, full: ImageSet, size: int) -> float:
    """Root mean square over the first images, in grey values."""
    parts = [(size, torch.arange(min(len(own), 100)))]
    (a, _), (b, _) = (next(iter(images.batches(parts, torch.device("cpu")))) for images in (own, full))
    return (a - b).square().mean().sqrt().item()


def _row(row: dict[str, Any]) -> dict[str, str]:
    return {
        "name": row["source"],
        "size": str(row["size"]),
        "images/s": f"{row['images_per_second']:.0f}",
        "full size, images/s": f"{row['num'] / row['full_seconds']:.0f}",
        "times faster": f"{row['full_over_own']:.2f}",
        "rms difference": f"{row['rms']:.2f}",
    }
