"""Shards: tar files with many images and their classes each, as WebDataset has them, streamed batch by batch."""

import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multipde.data.bad_images import Skipped, sound_images
from multipde.data.decode import image_sizes
from multipde.data.folder import ENDINGS, common_side, left_out_text
from multipde.data.held_back import TEST_PARTS
from multipde.data.image_data import ImageData, channel_statistics, range_notes
from multipde.data.streamed import StreamedImages
from multipde.data.tar_members import Member, TarMembers, list_members

SHARD_INDEX = "index.json"
"""File beside the shards with the names of the classes and the number of images in every shard."""
SHUFFLE_BUFFER = 10_000
"""Number of images among which a shard is mixed with those that are read before and after it."""
SEEN = 2000
"""Number of images whose headers are read to learn the sizes of all."""


@dataclass
class ShardImages(StreamedImages):
    """Images in shards, read in an order that goes through few shards at a time.

    In every epoch the shards are put in random order, and no image is then moved by ``buffer`` places or more: image i
    of that sequence gets the key i + buffer * u, with u uniform on [0, 1), and the keys are sorted. This mixes as a
    shuffle buffer of so many images does, but the buffer holds numbers, not images, and the order is a function of the
    seed and the epoch alone. Hence the position in an epoch is its number of batches, which every checkpoint has, a
    training resumes bit for bit, and every process reads its slice of every batch, so that n processes see what one
    does, in the same order, as with a folder; there may be fewer shards than processes.
    """

    buffer: int = SHUFFLE_BUFFER

    def order(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """The order in which these images are read in an epoch."""
        members: Any = self.paths
        place = torch.randperm(len(members.shards), generator=generator)[torch.from_numpy(members.shard)[indices]]
        offset = torch.from_numpy(members.offset)[indices]
        in_sequence = indices[torch.from_numpy(np.lexsort((offset.numpy(), place.numpy())))]
        keys = torch.rand(len(indices), generator=generator, dtype=torch.float64) * self.buffer
        return in_sequence[(torch.arange(len(indices)) + keys).argsort(stable=True)]

    def files(self) -> Iterator[tuple[str, str, Path]]:
        members: Any = self.paths
        return ((shard.name, "", shard) for k, shard in enumerate(members.shards) if (members.shard == k).any())


def load_shards(root: str | Path, size: int | None, shuffle_buffer: int, skip_bad: bool) -> ImageData:
    """The images of shards: training images of ``train-*.tar``, test images of ``test-*.tar`` or ``val-*.tar``.

    A sample is an image and its class, as the files KEY.jpg (or another image) and KEY.cls, which holds a whole number;
    other files are left out, and a note says so. The names of the classes come from the index that `write_shards`
    writes, without which they are the numbers.

    Args:
        root: directory of the shards; or the training shards, with numbers in braces as in ``train-{000..146}.tar``, in
            whose directory those for testing are.
        skip_bad: skip shards that cannot be read, and what follows the damage of others, samples that are not an image
            with its class, and images that cannot be decoded, for which each is decoded once.

    Raises:
        ValueError: a shard is missing, cut off, or does not have the number of images that the index says; a sample
            lacks its image or its class; nothing is left.
    """
    if shuffle_buffer < 1:
        raise ValueError(f"shuffle_buffer must be positive, got {shuffle_buffer}")
    directory, train_shards, test_shards = _listed(Path(root).expanduser())
    index = _read_index(directory / SHARD_INDEX)
    left_out: Counter[str] = Counter()
    skipped, how = Skipped(), (index, left_out, shuffle_buffer)
    parts = [read_shards(s, *how, skipped if skip_bad else None) for s in (train_shards, test_shards)]
    train, test = [part.take(sound_images(part.paths, skipped)) for part in parts] if skip_bad else parts
    num = 1 + max(int(part.labels.max()) for part in (train, test))
    names = index.get("classes") or [str(k) for k in range(num)]
    if num > len(names):
        raise ValueError(f"{directory / SHARD_INDEX} must name all classes, got {len(names)} names and class {num - 1}")
    seen = torch.linspace(0, len(train) - 1, min(len(train), SEEN)).long()
    counts, _ = image_sizes(train.take(seen).paths)
    side, notes = common_side(counts, size)
    notes += [left_out_text(directory, left_out)] if left_out else []
    notes.append(f"{len(train) + len(test):,} images streamed from {len(train_shards) + len(test_shards):,} shards")
    notes += skipped.notes(len(train) + len(test))
    statistics = channel_statistics(train, side)
    notes += range_notes(train, side)
    name = directory.resolve().name
    return ImageData(name, train, test, tuple(names), side, *statistics, tuple(notes), skipped=skipped)


def expanded(pattern: str) -> list[str]:
    """The names that a pattern with numbers in braces stands for.

    >>> expanded("train-{08..10}.tar")
    ['train-08.tar', 'train-09.tar', 'train-10.tar']
    """
    found = re.search(r"\{([0-9]+)\.\.([0-9]+)\}", pattern)
    if found is None:
        return [pattern]
    first, last = map(int, found.groups())
    if not 0 <= last - first < 1_000_000:
        raise ValueError(f"root must count upwards in braces, got {found[0]}")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [before + f"{k:0{len(found[1])}}" + name for k in range(first, last + 1) for name in expanded(after)]


def _listed(root: Path) -> tuple[Path, list[Path], list[Path]]:
    """The directory of the shards, those for training, and those for testing."""
    directory = root if root.is_dir() else root.parent
    if not directory.is_dir():
        raise ValueError(f"root must be a directory or shards in one, got {root}; type --root DIR")
    train = _with_prefix(directory, "train") if root.is_dir() else [directory / name for name in expanded(root.name)]
    if not train:
        raise ValueError(f"root must hold train-*.tar, or name shards such as 'train-{{000..146}}.tar', got {root}")
    for prefix in TEST_PARTS:
        if test := _with_prefix(directory, prefix):
            return directory, train, test
    raise ValueError(f"{directory} must hold shards for testing, test-*.tar or val-*.tar, got none")


def _with_prefix(directory: Path, prefix: str) -> list[Path]:
    """The shards PREFIX-N.tar for all numbers from the first one of the directory, or of the index, to the last one."""
    names = {path.name for path in directory.iterdir()} | set(_read_index(directory / SHARD_INDEX).get("shards", ()))
    digits = [m[1] for name in names if (m := re.fullmatch(rf"{prefix}-([0-9]+)\.tar", name))]
    if not digits:
        return []
    first, last = min(digits, key=int), max(digits, key=int)
    return [directory / name for name in expanded(f"{prefix}-{{{first}..{last}}}.tar")]


def _read_index(file: Path) -> dict[str, Any]:
    """Classes and shards of an index; empty if there is none."""
    if not file.is_file():
        return {}
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        is_sound = all(isinstance(name, str) for name in index["classes"])
        is_sound &= all(
            isinstance(shard[key], int) for shard in index["shards"].values() for key in ("images", "bytes")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} must be an index that multipde shard wrote, got {str(error)[:100]}") from None
    if not is_sound:
        raise ValueError(f"{file} must be an index that multipde shard wrote, got other values")
    return index


def read_shards(
    shards: Sequence[Path],
    index: dict[str, Any] | None = None,
    left_out: Counter[str] | None = None,
    buffer: int = SHUFFLE_BUFFER,
    skipped: Skipped | None = None,
) -> ShardImages:
    """The images of shards, in the order in which they are in them.

    Args:
        index: contents of the index, with which the shards must agree.
        left_out: counts of files that are neither images nor classes, to which those of these shards are added.
        skipped: takes a line for whatever is damaged, which is passed over; None to raise an error.
    """
    index, left_out = index or {}, Counter() if left_out is None else left_out
    found = array("q")
    for k, shard in enumerate(shards):
        known, begun = index.get("shards", {}).get(shard.name), len(found) // 4
        try:
            if known and skipped is None:
                _check_bytes(shard, known["bytes"])
            for image, label in _samples(shard, left_out, skipped):
                found.extend((k, image.offset, image.size, label))
            if known:
                _check_bytes(shard, known["bytes"])
            if known and skipped is None and (num := len(found) // 4 - begun) != known["images"]:
                raise ValueError(f"{shard} must hold {known['images']:,} images, got {num:,}: it is damaged")
        except ValueError as error:
            if skipped is None:
                raise ValueError(f"{error}; type --skip-bad to go on without what is damaged") from None
            skipped.shards.append(f"{error} ({len(found) // 4 - begun:,} of its images are used)")
    if not found:
        what = f": {skipped.shards[0]}" if skipped is not None and skipped.shards else ""
        raise ValueError(f"shard must hold images, got none in {shards[0]}{what}")
    shard, offset, size, label = np.array(found).reshape(-1, 4).T
    members = TarMembers(shards, shard.astype(np.int32), offset.copy(), size.copy())
    return ShardImages(members, torch.from_numpy(label.copy()), buffer=buffer)


def _check_bytes(shard: Path, num: int) -> None:
    if shard.is_file() and shard.stat().st_size != num:
        raise ValueError(f"{shard} must have {num:,} bytes, got {shard.stat().st_size:,}: it is damaged")


class _BadSampleError(ValueError):
    """A sample that is not an image with its class, in a shard that can be read on."""


def _samples(shard: Path, left_out: Counter[str], skipped: Skipped | None) -> Iterator[tuple[Member, int]]:
    """The image and the class of every sample of a shard, whose files follow each other."""
    for key, files in groupby(list_members(shard), lambda found: _key_and_ending(found[0])[0]):
        try:
            yield _sample(shard, key, files, left_out)
        except _BadSampleError as error:
            if skipped is None:
                raise
            skipped.images.append(str(error))


def _key_and_ending(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending


def _sample(shard: Path, key: str, files: Iterable[tuple[str, Member]], left_out: Counter[str]) -> tuple[Member, int]:
    """The image and the class of the files of one sample."""
    image, label = None, None
    for name, member in files:
        ending = _key_and_ending(name)[1]
        if f".{ending.rpartition('.')[2].lower()}" in ENDINGS:
            if image is not None:
                raise _BadSampleError(f"sample must hold one image, got {name} as a second one in {shard}")
            image = member
        elif ending == "cls":
            label = _number(member, name)
        else:
            left_out[f"with the ending .{ending}"] += 1
    if image is None or label is None:
        lacks = "an image" if image is None else "a class"
        raise _BadSampleError(
            f"sample must be an image and its class, KEY.jpg and KEY.cls, got {key} without {lacks} in {shard}"
        )
    return image, label


def _number(member: Member, name: str) -> int:
    text = replace(member, size=min(member.size, 20)).read().decode(errors="replace").strip()
    if not re.fullmatch("[0-9]{1,9}", text):
        raise _BadSampleError(f"class must be a whole number, got {text!r} in {name} of {member.shard}")
    return int(text)
