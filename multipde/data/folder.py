"""Image folders, one per class, whose files are decoded once into memory or streamed batch by batch."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from multipde.data.bad_images import Skipped, offering_to_skip, sound_images
from multipde.data.decode import decode_images, image_sizes
from multipde.data.decoded_cache import DecodedCache
from multipde.data.held_back import TEST_PARTS, needs_share, share_note, split_by_class
from multipde.data.image_data import MEMORY_BYTES, ImageData, channel_statistics, range_notes
from multipde.data.images import TensorImages
from multipde.data.streamed import StreamedImages
from multipde.runtime.file_names import in_order, shown_name

Files = tuple[list[Path], Tensor]
"""Image files and the numbers of their classes."""

PARTS = ("train", "training", "testing", *TEST_PARTS)
"""Names of parts of a data set, which are hardly those of classes."""
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of images, those of torchvision."""


def load_folder(
    root: Path, size: int | None, stream_files: bool | None, share: float | None, skip_bad: bool
) -> ImageData:
    """The images of ``root/train/CLASS/*`` and ``root/test/CLASS/*``, or ``root/val``, under the name of the folder.

    With a share, test images are held back out of ``train`` and ``val`` together, or out of ``root/CLASS/*`` where
    there is no ``train``. As in torchvision, a file counts if its name has the ending of an image, at any depth and
    behind links to folders. Hidden files and folders are left out, and a note says what else was.
    """
    left_out: Counter[str] = Counter()
    if share is not None:
        names, train, test, notes = _divided(root, share, left_out)
    else:
        names, parts = list_folder(root, left_out)
        train, test = parts.values()
        tests = list(parts)[1]
        notes = [f"the test images are those in {root / tests}"] if tests != "test" else []
    if +left_out:
        notes.append(left_out_text(root, +left_out))
    return load_files(root.resolve().name, names, train, test, size, stream_files, notes, skip_bad)


def _divided(root: Path, share: float, left_out: Counter[str]) -> tuple[list[str], Files, Files, list[str]]:
    """Class names, training and test images of a folder without test images, of which a share is held back, and a note.

    What is left out is counted.
    """
    there = _test_folders(root)
    if "test" in there:
        raise ValueError(f"test_share must be left out for data with test images, got both and {root / 'test'}")
    parts = [root / name for name in ("train", *there)] if (root / "train").is_dir() else [root]
    names, paths, labels = _list_classes(parts[0], left_out)
    for part in parts[1:]:
        other, more, numbers = _list_classes(part, left_out)
        _check_same(names, other, part.name)
        paths, labels = [*paths, *more], torch.cat([labels, numbers])
    if parts == [root]:
        _check_classes(root, names, paths)
    train, test = split_by_class(labels, share)
    notes = [share_note(share, len(test), len(paths), " and ".join(map(str, parts)))]
    return names, taken((paths, labels), train), taken((paths, labels), test), notes


def _check_classes(root: Path, names: list[str], paths: list[Path]) -> None:
    """Raise ValueError where what would be classes are parts of a data set, or one folder with the classes in it."""
    found = [name for name in names if name.lower() in PARTS]
    if len(found) > 1 or found == names:
        advice = f"name them train and test, or type --root {root / found[0]}"
        raise ValueError(f"root must hold a folder per class, got parts of a data set ({', '.join(found)}); {advice}")
    if len(names) == 1 and all(path.parent.parent != root for path in paths):
        advice = f"type --root {root / names[0]}"
        raise ValueError(f"root must hold a folder per class, got one, {names[0]}, with all images deeper; {advice}")


def _check_same(names: list[str], others: list[str], folder: str) -> None:
    """Raise ValueError unless the classes of two folders are the same."""
    if others != names:
        odd = sorted(set(names) ^ set(others))
        raise ValueError(f"root must hold the same classes in train and {folder}, got {odd[0]!r} in only one of them")


def load_files(
    name: str,
    names: Sequence[str],
    own_train: Files,
    own_test: Files,
    size: int | None,
    stream_files: bool | None,
    listed: Sequence[str] = (),
    skip_bad: bool = False,
) -> ImageData:
    """The `ImageData` of image files with the numbers of their classes, decoded into memory or streamed.

    ``listed`` is what the user is told besides; other arguments as in `load_data`.
    """
    skipped = Skipped()
    if skip_bad:
        own_train, own_test = (taken(own, sound_images(own[0], skipped)) for own in (own_train, own_test))
    (train_paths, train_labels), (test_paths, test_labels) = own_train, own_test
    paths, listed = [*train_paths, *test_paths], list(listed)
    listed += skipped.notes(len(paths))
    cache = None if stream_files else DecodedCache(paths, size)
    images, notes = (cache and cache.read()) or (None, [])
    if images is None:
        with offering_to_skip():
            counts, num_several = image_sizes(paths)
        side, notes = common_side(counts, size)
        if num_several:
            notes.append(f"{num_several:,} files hold several frames: the first is taken")
        num_bytes = 3 * side**2 * len(paths)
        if cache is None or (stream_files is None and num_bytes > MEMORY_BYTES):
            listed.append(f"{len(paths):,} images streamed from their files ({num_bytes / 2**30:.2f} GiB decoded)")
        else:
            with offering_to_skip():
                images = decode_images(paths, side)
            if reason := cache.write(images, notes):
                listed.append(f"the decoded images are not kept for the next start: {reason}")
    if images is None:
        train, test = StreamedImages(train_paths, train_labels), StreamedImages(test_paths, test_labels)
    else:
        num, side = len(train_paths), images.shape[-1]
        train, test = TensorImages(images[:num], train_labels), TensorImages(images[num:], test_labels)
    statistics = channel_statistics(train, side)
    listed += range_notes(train, side)
    return ImageData(name, train, test, tuple(names), side, *statistics, (*notes, *listed), skipped=skipped)


def taken(files: Files, indices: Tensor) -> Files:
    """These files only."""
    paths, labels = files
    return [paths[k] for k in indices.tolist()], labels[indices]


def list_folder(root: Path, left_out: Counter[str]) -> tuple[list[str], dict[str, Files]]:
    """The names of the classes, and files and labels of ``train`` and of the folder of test images, by its name.

    What is left out is counted.
    """
    there = _test_folders(root)
    names, train, labels = _list_classes(root / "train", left_out)
    if not there:
        raise needs_share(f"{root / 'train'}")
    test_names, test, test_labels = _list_classes(root / there[0], left_out)
    _check_same(names, test_names, there[0])
    left_out.update({f"folder {name}": 1 for name in there[1:]})
    return names, {"train": (train, labels), there[0]: (test, test_labels)}


def _test_folders(root: Path) -> list[str]:
    return [name for name in TEST_PARTS if (root / name).is_dir()]


def image_files(directory: Path) -> tuple[list[Path], Counter[str]]:
    """All files below a directory that have the ending of an image, sorted by path, and numbers of those left out.

    Links to folders are followed, unless they lead back to a folder that they are in.
    """
    found: list[Path] = []
    left_out: Counter[str] = Counter()
    for base, folders, names in os.walk(directory, onerror=_refuse, followlinks=True):
        if os.path.islink(base) and _leads_back(Path(base)):
            left_out["links to a folder that they are in"] += 1
            folders.clear()
            continue
        left_out["hidden"] += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(base, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in ENDINGS:
                found.append(path)
            else:
                left_out[f"with the ending {path.suffix}" if path.suffix else "without an ending"] += 1
    return sorted(found, key=in_order), +left_out


def _leads_back(link: Path) -> bool:
    """Whether a link leads to a folder that it is in, by its path or by that of the folder it really lies in."""
    real = link.parent.resolve()
    return any(os.path.samefile(link, above) for above in {*link.absolute().parents, real, *real.parents})


def left_out_text(directory: Path, left_out: Counter[str]) -> str:
    """A line that says how many files of a folder are left out and why."""
    ordered = sorted(left_out.items(), key=lambda pair: (-pair[1], pair[0]))
    return f"left out of {directory}: " + ", ".join(f"{num:,} {what}" for what, num in ordered)


def _refuse(error: OSError) -> NoReturn:
    raise ValueError(f"image folder must be readable, got {error.filename}: {error.strerror}") from None


def _list_classes(directory: Path, left_out: Counter[str]) -> tuple[list[str], list[Path], Tensor]:
    """Class names, files and labels of DIR/CLASS/*, sorted by name; what is left out is counted."""
    if not directory.is_dir():
        raise ValueError(f"root must hold train/CLASS/* and test/CLASS/*, got no directory {directory}")
    try:
        entries = sorted(directory.iterdir(), key=in_order)
    except OSError as error:
        _refuse(error)
    left_out["hidden"] += sum(p.name.startswith(".") for p in entries)
    entries = [p for p in entries if not p.name.startswith(".")]
    left_out["beside the folders of the classes"] += sum(not p.is_dir() for p in entries)
    folders = [p for p in entries if p.is_dir()]
    if not folders:
        raise ValueError(f"root must hold a folder per class, got none in {directory}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        files, others = image_files(folder)
        left_out.update(others)
        if not files:
            what = f" ({left_out_text(folder, others)})" if others else ""
            raise ValueError(f"class folder must hold images, got none in {folder}{what}")
        paths += files
        labels += [label] * len(files)
    return list(map(shown_name, folders)), paths, torch.tensor(labels)


def common_side(counts: dict[tuple[int, int], int], size: int | None) -> tuple[int, list[str]]:
    """The side of the squares to which all images are resized, and a note if that changes the shape of any image."""
    shortest = sorted(min(shape) for shape, num in counts.items() for _ in range(num))
    if len(counts) == 1 and len(set(next(iter(counts)))) == 1:
        return min(size or shortest[0], shortest[0]), []
    side, (h, w), (height, width) = size or shortest[len(shortest) // 2], min(counts), max(counts)
    several = f"{len(counts)} sizes, {h}x{w} to {height}x{width} (height x width)"
    sizes = several if len(counts) > 1 else f"{h}x{w} pixels (height x width)"
    return side, [f"images have {sizes}: resized to {side}x{side}"]
