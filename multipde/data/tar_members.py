"""Image files inside uncompressed tar files, each read by its place there, without the rest of the file."""

import tarfile
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

BLOCK = 512
"""Bytes of a header; a member begins at a multiple of it, and an archive ends with blocks of zeros."""


@dataclass(frozen=True)
class Member:
    """A file inside a tar file: ``size`` bytes from byte ``offset`` on."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """The contents; OSError or ValueError if they cannot be read."""
        with open(self.shard, "rb", buffering=0) as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) != self.size:
            raise ValueError(f"{self.shard} ends within it")
        return data

    def __str__(self) -> str:
        try:
            header = Member(self.shard, self.offset - BLOCK, BLOCK).read()
            name = header[:100].rstrip(b"\0").decode(errors="replace")
        except (OSError, ValueError):
            name = f"the file at byte {self.offset}"
        return f"{name} in {self.shard}"


class TarMembers(Sequence[Member]):
    """Files inside tar files, stored as three arrays: 20 bytes for each."""

    def __init__(self, shards: Sequence[Path], shard: np.ndarray, offset: np.ndarray, size: np.ndarray):
        self.shards, self.shard, self.offset, self.size = list(shards), shard, offset, size

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, index: int) -> Member:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Member(self.shards[self.shard[index]], int(self.offset[index]), int(self.size[index]))

    def take(self, indices: Tensor) -> Self:
        """These files only."""
        taken, index = copy(self), indices.numpy()
        taken.shard, taken.offset, taken.size = self.shard[index], self.offset[index], self.size[index]
        return taken


def list_members(shard: Path) -> Iterator[tuple[str, Member]]:
    """The name and the place of every regular file in a tar file, from the headers alone.

    Members before the damage of a file are listed before the error is raised.

    Raises:
        ValueError: the file is missing, is no uncompressed tar file, or does not end with a block of zeros, as one that
            was cut off.
    """
    try:
        if not shard.is_file():
            raise ValueError("no such file" if not shard.exists() else "no regular file")
        with tarfile.open(shard, "r:") as tar:
            known: Any = tar
            while (found := tar.next()) is not None:
                known.members.clear()  # tarfile keeps them all, which takes a kilobyte for each
                if found.isreg() and not found.issparse():
                    yield found.name, Member(shard, found.offset_data, found.size)
            end = tar.offset
        if Member(shard, end, BLOCK).read().strip(b"\0"):
            raise ValueError(f"the header at byte {end} is damaged")
    except (OSError, ValueError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        text = "it ends too early" if "ends within" in str(reason) or "unexpected end" in str(reason) else reason
        raise ValueError(f"shard must be a whole tar file without compression, got {shard}: {text}") from None
