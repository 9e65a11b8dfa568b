"""Images and shards that cannot be read, which are skipped where the user asks for it, counted and named."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from multipde.data.decode import DECODING, UNREADABLE, decode_image
from multipde.data.tar_members import Member, TarMembers
from multipde.networks.user_cache import cache_directory, is_own, replaced

NAMED = 20
"""Number of bad images and shards that are named in the record of a run."""
SIDE = 8
"""Side in pixels at which every image is decoded once; a JPEG is then read whole, but only its means are computed."""
AT_ONCE = 4096


@dataclass
class Skipped:
    """What was skipped: a line for every shard that could not be read, or not to its end, and for every image."""

    shards: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    def notes(self, num_images: int) -> list[str]:
        """The line for the user, with the number of images that are left; none if nothing was skipped."""
        if not self:
            return []
        images, shards = len(self.images), len(self.shards)
        parts = [f"{images:,} image{'s' * (images > 1)}"] * bool(images)
        parts += [f"what could not be read of {shards:,} shard{'s' * (shards > 1)}"] * bool(shards)
        first = (*self.shards, *self.images)[0]
        return [f"skipped as bad: {' and '.join(parts)}, {num_images:,} images are left; the first: {first}"]

    def record(self) -> dict[str, int | str]:
        """The numbers, and the first lines, as plain data."""
        lines = "; ".join([*self.shards, *self.images][:NAMED])
        return {"skipped_images": len(self.images), "skipped_shards": len(self.shards), "skipped": lines}

    def __bool__(self) -> bool:
        return bool(self.shards or self.images)


@contextmanager
def offering_to_skip() -> Iterator[None]:
    """Within the context the error for an image that cannot be decoded says what to type to go on without it."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith(UNREADABLE):
            raise ValueError(f"{error}; type --skip-bad to go on without such images") from None
        raise


def sound_images(files: Sequence[Path] | TarMembers, skipped: Skipped) -> Tensor:
    """The indices of the images that can be decoded; a line for each of the others is added to ``skipped``.

    Every image is decoded once. The result is kept in the cache of the user for the next start, and belongs to the
    paths, lengths and times of the files, and to the places in them.

    Raises:
        ValueError: none can be decoded.
    """
    place = _place(files)
    found = _kept(place)
    if found is None:
        found = dict(_bad(files))
        _keep(place, found)
    if len(found) == len(files):
        raise ValueError(f"images must be readable, got none that is: {next(iter(found.values()))}")
    skipped.images += found.values()
    sound = torch.ones(len(files), dtype=torch.bool)
    sound[torch.tensor(list(found), dtype=torch.int64)] = False
    return sound.nonzero().flatten()


def sound_files(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The files that can be decoded, and what the user is told of the others; none of none."""
    if not paths:
        return [], []
    skipped = Skipped()
    sound = [paths[k] for k in sound_images(paths, skipped).tolist()]
    return sound, skipped.notes(len(sound))


def _bad(files: Sequence[Path] | TarMembers) -> Iterator[tuple[int, str]]:
    """The index of every image that cannot be decoded, and why."""

    def reason(index: int) -> str | None:
        try:
            decode_image(files[index], SIDE)
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        for begin in range(0, len(files), AT_ONCE):  # a future takes more memory than an image of this size
            part = range(begin, min(begin + AT_ONCE, len(files)))
            yield from ((i, text) for i, text in zip(part, pool.map(reason, part), strict=True) if text is not None)


def _place(files: Sequence[Path] | TarMembers) -> Path | None:
    """The file in the cache for these images; None if the user has no directory for it."""
    digest = hashlib.sha256(f"sound {DECODING} {SIDE}".encode())
    for path in files.shards if isinstance(files, TarMembers) else files:
        assert not isinstance(path, Member)
        digest.update(os.fsencode(path.absolute()))
        with suppress(OSError):
            status = os.stat(path)
            digest.update(f" {status.st_size} {status.st_mtime_ns} {status.st_ino}\n".encode())
    for numbers in (files.shard, files.offset, files.size) if isinstance(files, TarMembers) else ():
        digest.update(numbers.tobytes())
    try:
        return cache_directory() / f"bad-{digest.hexdigest()[:32]}.json"
    except RuntimeError:
        return None


def _kept(place: Path | None) -> dict[int, str] | None:
    try:
        if place is None or not is_own(place):
            return None
        return {int(index): str(text) for index, text in json.loads(place.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        return None


def _keep(place: Path | None, found: dict[int, str]) -> None:
    """Write what was found for the next start; where that fails, it is found again."""
    if place is None:
        return
    with suppress(OSError), replaced(place) as new:
        new.write_text(json.dumps(found), encoding="utf-8")
