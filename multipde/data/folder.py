"""Image folders, one per class, whose files are decoded once into memory or streamed batch by batch."""

import os
from pathlib import Path

import torch
from torch import Tensor

from multipde.data.decode import DecodedCache, decode_images, image_sizes
from multipde.data.image_data import MEMORY_BYTES, ImageData, channel_statistics
from multipde.data.images import TensorImages
from multipde.data.streamed import StreamedImages


def load_folder(root: Path, size: int | None, stream_files: bool | None) -> ImageData:
    """The images of ``root/train/CLASS/*`` and ``root/test/CLASS/*``, under the name of the folder."""
    names, train_paths, train_labels = _list_classes(root / "train")
    test_names, test_paths, test_labels = _list_classes(root / "test")
    if test_names != names:
        odd = sorted(set(names) ^ set(test_names))
        raise ValueError(f"root must hold the same classes in train and test, got {odd[0]!r} in only one of them")
    paths = [*train_paths, *test_paths]
    cache = DecodedCache(paths, size)
    images, notes = (None if stream_files else cache.read()) or (None, [])
    if images is None:
        side, notes = _common_side(image_sizes(paths), size)
        num_bytes = 3 * side**2 * len(paths)
        if stream_files or (stream_files is None and num_bytes > MEMORY_BYTES):
            notes.append(f"{len(paths):,} images streamed from their files ({num_bytes / 2**30:.2f} GiB decoded)")
        else:
            images = decode_images(paths, side)
            cache.write(images, notes)
    if images is None:
        train, test = StreamedImages(train_paths, train_labels), StreamedImages(test_paths, test_labels)
    else:
        num, side = len(train_paths), images.shape[-1]
        train, test = TensorImages(images[:num], train_labels), TensorImages(images[num:], test_labels)
    return ImageData(root.name, train, test, tuple(names), side, *channel_statistics(train, side), tuple(notes))


def image_files(directory: Path) -> list[Path]:
    """All files below a directory that have the ending of an image, sorted by path."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    paths = sorted(Path(base) / name for base, _, names in os.walk(directory) for name in names)
    return [path for path in paths if path.suffix.lower() in IMG_EXTENSIONS]


def _list_classes(directory: Path) -> tuple[list[str], list[Path], Tensor]:
    """Class names, files and labels of DIR/CLASS/*, sorted by name."""
    if not directory.is_dir():
        raise ValueError(f"root must hold train/CLASS/* and test/CLASS/*, got no directory {directory}")
    class_names = sorted(p.name for p in directory.iterdir() if p.is_dir())
    if not class_names:
        raise ValueError(f"root must hold a folder per class, got none in {directory}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        files = image_files(directory / name)
        if not files:
            raise ValueError(f"class folder must hold images, got none in {directory / name}")
        paths += files
        labels += [label] * len(files)
    return class_names, paths, torch.tensor(labels)


def _common_side(counts: dict[tuple[int, int], int], size: int | None) -> tuple[int, list[str]]:
    """The side of the squares to which all images are resized, and a note if that changes the shape of any image."""
    shortest = sorted(min(shape) for shape, num in counts.items() for _ in range(num))
    if len(counts) == 1 and len(set(next(iter(counts)))) == 1:
        return min(size or shortest[0], shortest[0]), []
    side, (h, w), (height, width) = size or shortest[len(shortest) // 2], min(counts), max(counts)
    sizes = f"{len(counts)} sizes, {h}x{w} to {height}x{width} (height x width)"
    return side, [f"images have {sizes}: resized to {side}x{side}"]
