"""The data sets by name, folders of images, and a user's own: all become `ImageData`."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multipde.data import shapes
from multipde.data.decode import DecodedCache, decode_images, image_sizes
from multipde.data.images import ImageSet, TensorImages
from multipde.data.seeds import stream
from multipde.data.streamed import StreamedImages

DATA_NAMES = ("shapes", "cifar10", "cifar100", "stl10", "folder")
STREAM_BYTES = 4 * 2**30
"""A folder whose decoded images would take more is streamed; so many bytes of shapes are rendered at most."""


@dataclass
class ImageData:
    """Training and test images, what their classes are called, and what to normalise them with.

    Args:
        name: of the data set.
        size: image side in pixels at which they are kept.
        mean: per channel on [0, 1], of the training images.
        std: per channel on [0, 1], of the training images.
        notes: what was done to the images that the user should know, a line each.
    """

    name: str
    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()


def load_data(
    source: Any,
    *,
    root: str | Path | None = None,
    size: int | None = None,
    download: bool = False,
    stream_files: bool | None = None,
    num_train: int = 8000,
    num_test: int = 2000,
    seed: int = 0,
) -> ImageData:
    """Images by name, or a user's own.

    Args:
        source: ``"shapes"`` (embedded), ``"cifar10"``, ``"cifar100"``, ``"stl10"`` (as torchvision stores them),
            ``"folder"`` (``root/train/CLASS/*`` and ``root/test/CLASS/*``); or a pair (train, test), each a
            torchvision-style data set or (images, labels) tensors, images uint8 or on [0, 1]; or an `ImageData`.
        root: directory of the data set.
        size: largest side in pixels that is needed: shapes are rendered and folder images kept at it, other data and
            square images that are smaller at their own.
        download: fetch a torchvision data set that is not there.
        stream_files: decode folder images batch by batch; None decides by their number and size.
        num_train: number of training shapes.
        num_test: number of test shapes.
        seed: of the shapes.

    Raises:
        ValueError: an unknown name, a missing root or class folder, a broken or missing image.
    """
    if isinstance(source, ImageData):
        return source
    if size is not None and size < 1:
        raise ValueError(f"size must be positive, got {size}")
    if isinstance(source, (tuple, list)) and len(source) == 2:
        return _from_pair(source)
    if not isinstance(source, str):
        raise ValueError(f"data must be a name or a pair (train, test), got {type(source).__name__}")
    if source == "shapes":
        side = size or 32
        needed = 3 * side**2 * (num_train + num_test)
        if not (min(num_train, num_test) > 0 and needed <= STREAM_BYTES):
            raise ValueError(
                f"images must fit into {STREAM_BYTES >> 30} GiB, got {num_train} and {num_test} shapes of size {side}"
            )
        train = TensorImages(*shapes.render_shapes(num_train, side, seed=2 * seed))
        test = TensorImages(*shapes.render_shapes(num_test, side, seed=2 * seed + 1))
        return _finish("shapes", train, test, shapes.CLASS_NAMES, side)
    if source == "folder":
        return _load_folder(_existing(source, root), size, stream_files)
    if source in _TORCHVISION:
        return _load_torchvision(source, root, download)
    raise ValueError(f"data must be one of {', '.join(DATA_NAMES)}, or a pair (train, test), got {source!r}")


def data_label(data: str, root: str | Path | None) -> str:
    """What a data set is called in tables: a folder by its own name, as in `ImageData`."""
    return Path(root).resolve().name if data == "folder" and root is not None else data


def split_indices(num: int, seed: int, validation: float = 0.2) -> tuple[Tensor, Tensor]:
    """A random split into training and validation indices, in random order, the same for the same seed.

    Raises:
        ValueError: a share that leaves one of the two empty.
    """
    num_validation = round(num * validation)
    if not 0 < num_validation < num:
        raise ValueError(f"validation must leave images on both sides, got {validation} of {num} images")
    order = torch.randperm(num, generator=stream(seed, "split"))
    return order[num_validation:], order[:num_validation]


def _finish(
    name: str, train: ImageSet, test: ImageSet, class_names: Sequence[str], size: int, notes: Sequence[str] = ()
) -> ImageData:
    mean, std = _channel_statistics(train, size)
    return ImageData(name, train, test, tuple(class_names), size, mean, std, tuple(notes))


def _channel_statistics(images: ImageSet, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel on [0, 1]; of 2,000 images evenly drawn where they are streamed."""
    num = len(images)
    order = torch.arange(num)
    if isinstance(images, StreamedImages) and num > 2000:
        order = torch.linspace(0, num - 1, 2000).long()
    total, squares, count = 0.0, 0.0, 0
    for batch, _ in images.batches([(size, part) for part in order.split(1000)], torch.device("cpu")):
        values = batch.transpose(0, 1).flatten(1) / 255
        total = total + values.sum(1, dtype=torch.float64)
        squares = squares + values.square_().sum(1, dtype=torch.float64)
        count += values.shape[1]
    mean = total / count
    std = (squares / count - mean**2).clamp_min(1e-6).sqrt()  # pyright: ignore[reportAttributeAccessIssue]
    return tuple(mean.tolist()), tuple(std.tolist())  # pyright: ignore[reportAttributeAccessIssue]


def _existing(name: str, root: str | Path | None) -> Path:
    if root is None:
        raise ValueError(f"root must be given for data {name!r}; type --root DIR")
    if not Path(root).is_dir():
        raise ValueError(f"root must be a directory, got {root}")
    return Path(root)


def _load_folder(root: Path, size: int | None, stream_files: bool | None) -> ImageData:
    class_names, train_paths, train_labels = _list_folder(root / "train")
    test_names, test_paths, test_labels = _list_folder(root / "test")
    if test_names != class_names:
        odd = sorted(set(class_names) ^ set(test_names))
        raise ValueError(f"root must hold the same classes in train and test, got {odd[0]!r} in only one of them")
    paths = [*train_paths, *test_paths]
    cache = DecodedCache(paths, size)
    kept = None if stream_files else cache.read()
    if kept is None:
        side, notes = _common_square(image_sizes(paths), size)
        bytes_needed = 3 * side**2 * len(paths)
        if stream_files or (stream_files is None and bytes_needed > STREAM_BYTES):
            notes.append(f"{len(paths):,} images streamed from their files ({bytes_needed / 2**30:.2f} GiB decoded)")
            streamed = StreamedImages(train_paths, train_labels), StreamedImages(test_paths, test_labels)
            return _finish(root.name, *streamed, class_names, side, notes)
        kept = decode_images(paths, side), notes
        cache.write(*kept)
    images, notes = kept
    train = TensorImages(images[: len(train_paths)], train_labels)
    test = TensorImages(images[len(train_paths) :], test_labels)
    return _finish(root.name, train, test, class_names, images.shape[-1], notes)


def _list_folder(directory: Path) -> tuple[list[str], list[Path], Tensor]:
    """Class names, files and labels of DIR/CLASS/*, in name order."""
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


def image_files(directory: Path) -> list[Path]:
    """All image files below a directory, by their endings, in order."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    paths = sorted(Path(base) / name for base, _, names in os.walk(directory) for name in names)
    return [path for path in paths if path.suffix.lower() in IMG_EXTENSIONS]


def _common_square(counts: dict[tuple[int, int], int], size: int | None) -> tuple[int, list[str]]:
    """The side at which all images are kept, and a note where that changes their shape."""
    shortest = sorted(min(shape) for shape, num in counts.items() for _ in range(num))
    if len(counts) == 1 and len(set(next(iter(counts)))) == 1:
        return min(size or shortest[0], shortest[0]), []
    side = size or shortest[len(shortest) // 2]
    smallest, largest = min(counts), max(counts)
    return side, [
        f"images have {len(counts)} sizes, {smallest[0]}x{smallest[1]} to {largest[0]}x{largest[1]} "
        f"(height x width): resized to {side}x{side}"
    ]


def _load_torchvision(name: str, root: str | Path | None, download: bool) -> ImageData:
    if not download or root is None:
        _existing(name, root)
    try:
        train, test = _TORCHVISION[name](str(root), download)
    except RuntimeError as error:
        raise ValueError(f"root must hold {name}, got none in {root} ({error}); type --download to fetch it") from None
    except OSError as error:
        raise ValueError(f"{name} must be readable or downloadable, got {error}") from None
    stored = _stored(train)
    return _finish(name, stored, _stored(test), train.classes, stored.images.shape[-1])


def _stored(part: Any) -> TensorImages:
    """The images that a torchvision set holds decoded: (N, H, W, C) in CIFAR, (N, C, H, W) in STL-10."""
    images = torch.from_numpy(part.data)
    labels = torch.as_tensor(part.targets if hasattr(part, "targets") else part.labels)
    return TensorImages(images if images.shape[1] == 3 else images.permute(0, 3, 1, 2).contiguous(), labels.long())


def _cifar(name: str) -> Callable[[str, bool], tuple[Any, Any]]:
    def make(root: str, download: bool) -> tuple[Any, Any]:
        from torchvision import datasets

        kind = getattr(datasets, name)
        return kind(root, train=True, download=download), kind(root, train=False, download=download)

    return make


def _stl(root: str, download: bool) -> tuple[Any, Any]:
    from torchvision import datasets

    return (datasets.STL10(root, "train", download=download), datasets.STL10(root, "test", download=download))


_TORCHVISION = {"cifar10": _cifar("CIFAR10"), "cifar100": _cifar("CIFAR100"), "stl10": _stl}


def _from_pair(pair: Sequence[Any]) -> ImageData:
    train, test = (_as_tensors(part, which) for part, which in zip(pair, ("train", "test"), strict=True))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"train and test images must have one shape, got {tuple(train.images.shape[1:])} "
            f"and {tuple(test.images.shape[1:])}"
        )
    labels = torch.cat([train.labels, test.labels])
    num_classes = int(labels.max()) + 1
    names = getattr(pair[0], "classes", None) or [str(k) for k in range(num_classes)]
    if labels.min() < 0 or num_classes > len(names):
        raise ValueError(f"labels must lie in 0..{len(names) - 1}, got {int(labels.min())} to {num_classes - 1}")
    return _finish("own", train, test, names, train.images.shape[-1])


def _as_tensors(part: Any, which: str) -> TensorImages:
    if isinstance(part, (tuple, list)) and len(part) == 2 and all(isinstance(t, Tensor) for t in part):
        images, labels = part
    else:
        images, labels = _read_data_set(part, which)
    if images.dim() < 3 or len(images) != len(labels) or not len(images):
        raise ValueError(
            f"{which} must hold images (N, C, *size) and as many labels, got {tuple(images.shape)} and {len(labels)}"
        )
    if len(set(images.shape[2:])) != 1:
        raise ValueError(f"{which} images must be square, got {tuple(images.shape[2:])}")
    if labels.is_floating_point() and bool((labels != labels.round()).any()):
        raise ValueError(f"{which} labels must be whole numbers, got {labels.tolist()[:3]}")
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise ValueError(f"{which} images must be uint8 or lie in [0, 1], got {images.dtype}")
    if images.is_floating_point():
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise ValueError(f"{which} images must be uint8 or lie in [0, 1], got {images.min():g} to {images.max():g}")
        images = (images * 255).round()
    return TensorImages(images.to(torch.uint8), labels.long())


def _read_data_set(part: Any, which: str) -> tuple[Tensor, Tensor]:
    """Images and labels of a torchvision-style data set, item by item."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    if not hasattr(part, "__getitem__") or not hasattr(part, "__len__"):
        raise ValueError(f"{which} must be a data set or (images, labels) tensors, got {type(part).__name__}")
    items = [part[i] for i in range(len(part))]
    if not items:
        raise ValueError(f"{which} must hold images, got none")
    images = [x if isinstance(x, Tensor) else pil_to_tensor(x) for x, _ in items]
    shapes_found = {tuple(x.shape) for x in images}
    if len(shapes_found) > 1:
        raise ValueError(f"{which} images must have one shape, got {sorted(shapes_found)[:2]}; add a Resize transform")
    return torch.stack(images), torch.tensor([int(label) for _, label in items])
