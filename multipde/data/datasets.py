"""Labelled images from every source as `ImageData`: a data set by name, a folder, or data given in Python."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multipde.data import shapes
from multipde.data.folder import load_files, load_folder
from multipde.data.held_back import check_test_share, files_of, needs_share, pair_of_parts, split_data_set
from multipde.data.image_data import MEMORY_BYTES, ImageData, channel_statistics
from multipde.data.images import TensorImages, stream
from multipde.data.labels import same_names
from multipde.data.listed import load_listed
from multipde.data.pairs import load_pair
from multipde.data.shards import SHUFFLE_BUFFER, load_shards
from multipde.data.streamed_rows import is_row_stream, load_streams
from multipde.mesh.modes import ordinary_tensors

DATA_NAMES = ("shapes", "cifar10", "cifar100", "stl10", "folder", "csv", "webdataset")
OWN_FILES = ("folder", "csv", "webdataset")
"""Data that are files of the user's own, of which bad ones can be skipped."""


@ordinary_tensors()
def load_data(
    source: Any,
    *,
    root: str | Path | None = None,
    size: int | None = None,
    download: bool = False,
    stream_files: bool | None = None,
    test_share: float | None = None,
    num_train: int = 8000,
    num_test: int = 2000,
    seed: int = 0,
    shuffle_buffer: int = SHUFFLE_BUFFER,
    skip_bad: bool = False,
) -> ImageData:
    """Load training and test images with their labels, from a data set by name or from the user's own data.

    A data set that transforms its training images at random is read anew in every epoch.

    Args:
        source: ``"shapes"`` (rendered by this library), ``"cifar10"``, ``"cifar100"``, ``"stl10"`` (as torchvision
            stores them), ``"folder"`` (``root/train/CLASS/*`` and ``root/test/CLASS/*``, or ``val``, ``valid`` for
            ``test``), ``"csv"`` (root is a CSV file with the columns file and label, and perhaps split with train and
            test), ``"webdataset"`` (tar files of images and classes, see `load_shards`); or a pair (train, test), each
            a torchvision-style data set or (images, labels), images uint8 or on [0, 1]; or a dictionary with the parts
            train and test or validation, as a ``DatasetDict`` of Hugging Face; or one data set, such as an
            ``ImageFolder``, with a test_share; or an `ImageData`. Data sets may be streams of Hugging Face, see
            `load_streams`.
        root: directory of the data set; not needed for the shapes and for data given in Python. For shards also the
            names of those for training, such as ``"data/train-{000..146}.tar"``.
        size: largest image side in pixels that is needed. Shapes are rendered at this size. Images of a folder are
            resized to it, unless all are squares of one smaller size. Other data keep their own size.
        download: download a torchvision data set that is not in root.
        stream_files: decode the images of a folder batch by batch; None decides by their number and size. Those of
            shards always are.
        test_share: for data without test images, the share of every class that is held back for the test, in (0, 1).
        num_train, num_test: number of training and of test images of the shapes.
        seed: seed of the shapes.
        shuffle_buffer: number of places by which the order of an epoch departs from that of the shards.
        skip_bad: of a folder, a CSV file or shards, skip images that cannot be decoded and shards that cannot be read;
            a note counts them. Each image is then decoded once at the start.

    Raises:
        ValueError: the name is unknown, root or a class folder is missing, or an image is broken or missing.
    """
    if isinstance(source, ImageData):
        return source
    if size is not None and size < 1:
        raise ValueError(f"size must be positive, got {size}")
    check_test_share(test_share)
    if skip_bad and source not in OWN_FILES:
        what = repr(source) if isinstance(source, str) else type(source).__name__
        raise ValueError(f"skip_bad must come with the data {', '.join(OWN_FILES)}, got {what}")
    if not isinstance(source, str):
        return _given(source, size, stream_files, test_share, shuffle_buffer)
    if test_share is not None and source not in ("folder", "csv"):
        raise ValueError(f"test_share must be left out for {source}, which has test images, got {test_share}")
    if source == "shapes":
        return _load_shapes(num_train, num_test, size or 32, seed)
    if source == "folder":
        return load_folder(_existing(source, root), size, stream_files, test_share, skip_bad)
    if source == "csv":
        if root is None or not (file := Path(root).expanduser()).is_file():
            raise ValueError(f"root must be a CSV file for data 'csv', got {root}; type --root FILE")
        return load_listed(file, size, stream_files, test_share, skip_bad)
    if source == "webdataset":
        if root is None:
            raise ValueError(
                "root must be given for data 'webdataset'; type --root DIR or --root 'train-{000..146}.tar'"
            )
        if stream_files is False:
            raise ValueError("stream must be left out for data 'webdataset', which is always streamed, got False")
        return load_shards(root, size, shuffle_buffer, skip_bad)
    if source in DATA_NAMES:
        directory = Path(root).expanduser() if download and root is not None else _existing(source, root)
        return _load_torchvision(source, str(directory), download)
    raise ValueError(f"data must be one of {', '.join(DATA_NAMES)}, or a pair (train, test), got {source!r}")


def _given(
    source: Any, size: int | None, stream_files: bool | None, share: float | None, shuffle_buffer: int
) -> ImageData:
    """Data given in Python: a pair (train, test), parts by name, or one data set of which a share is held back."""
    note = ""
    if isinstance(source, Mapping) and share is not None and "test" not in source:
        source = source["train"] if is_row_stream(source.get("train")) else source
    if is_row_stream(source):
        if share is None:
            raise needs_share("a stream")
        return load_streams((source,), size, share, shuffle_buffer)
    if isinstance(source, Mapping) and "train" in source:
        source, note = pair_of_parts(source, share)
    elif not (isinstance(source, (tuple, list)) and len(source) == 2):
        if isinstance(source, (Mapping, Tensor)) or not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
            raise ValueError(f"data must be a name or a pair (train, test), got {type(source).__name__}")
        source, note = split_data_set(source, share)
    elif share is not None:
        raise ValueError("test_share must be left out for a pair (train, test), got both")
    train, test = (files_of(part) for part in source)
    if any(map(is_row_stream, source)):
        if not all(map(is_row_stream, source)):
            raise ValueError("train and test must both be streams, got one of them alone")
        found = load_streams(source, size, None, shuffle_buffer)
    elif train is not None and test is not None:
        same_names([(tuple(train[0]), "train"), (tuple(test[0]), "test")])
        found = load_files("own", train[0], train[1:], test[1:], size, stream_files)
    else:
        found = load_pair(source)
    return replace(found, notes=(*found.notes, note)) if note else found


def data_label(data: str, root: str | Path | None) -> str:
    """The name of a data set in tables, as in `ImageData.name`: for the user's own that of the directory or file."""
    if root is None or data not in OWN_FILES:
        return data
    path = Path(root).resolve()
    if data == "csv":
        return path.stem
    return path.parent.name if path.suffix == ".tar" else path.name


def split_indices(num: int, seed: int, validation: float = 0.2) -> tuple[Tensor, Tensor]:
    """A random split into training and validation indices, in random order, the same for the same seed."""
    num_validation = round(num * validation)
    if not 0 < num_validation < num:
        raise ValueError(f"validation must leave images on both sides, got {validation} of {num} images")
    order = torch.randperm(num, generator=stream(seed, "split"))
    return order[num_validation:], order[:num_validation]


def _load_shapes(num_train: int, num_test: int, size: int, seed: int) -> ImageData:
    needed = 3 * size**2 * (num_train + num_test)
    if not (min(num_train, num_test) > 0 and needed <= MEMORY_BYTES):
        raise ValueError(
            f"images must fit into {MEMORY_BYTES >> 30} GiB, got {num_train} and {num_test} shapes of size {size}"
        )
    numbers = enumerate((num_train, num_test))
    train, test = (TensorImages(*shapes.render_shapes(num, size, seed=2 * seed + k)) for k, num in numbers)
    return ImageData("shapes", train, test, shapes.CLASS_NAMES, size, *channel_statistics(train, size))


def _load_torchvision(name: str, root: str, download: bool) -> ImageData:
    from torchvision import datasets

    kind, splits = getattr(datasets, name.upper()), ("train", "test") if name == "stl10" else (True, False)
    try:
        parts = [kind(root, split, download=download) for split in splits]
    except RuntimeError as error:
        raise ValueError(f"root must hold {name}, got none in {root} ({error}); type --download to fetch it") from None
    except OSError as error:
        raise ValueError(f"{name} must be readable or downloadable, got {error}") from None
    train, test = (_stored(part) for part in parts)
    size = train.images.shape[-1]
    return ImageData(name, train, test, tuple(parts[0].classes), size, *channel_statistics(train, size))


def _stored(part: Any) -> TensorImages:
    """The decoded images of a torchvision data set, which are (N, H, W, C) in CIFAR and (N, C, H, W) in STL-10."""
    images = torch.from_numpy(part.data)
    labels = torch.as_tensor(part.targets if hasattr(part, "targets") else part.labels)
    return TensorImages(images if images.shape[1] == 3 else images.permute(0, 3, 1, 2).contiguous(), labels.long())


def _existing(name: str, root: str | Path | None) -> Path:
    if root is None:
        raise ValueError(f"root must be given for data {name!r}; type --root DIR")
    directory = Path(root).expanduser()
    if not directory.is_dir():
        raise ValueError(f"root must be a directory, got {root}; type --root DIR")
    return directory
