"""The directory in which files are kept for the next start, and what in it may be trusted."""

import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LEFT = 3600.0
"""Seconds after which a file that has not been written further is one that was left."""


def cache_directory() -> Path:
    """MULTIPDE_CACHE if that is set, else a directory in the user's own; RuntimeError if there is no home directory."""
    if chosen := os.environ.get("MULTIPDE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "multipde"


def is_own(path: Path, is_kind: int = stat.S_IFREG) -> bool:
    """Whether a path is a regular file (or of another kind), of this user, and such that nobody else can write it."""
    if not os.path.lexists(path):
        return False
    status = os.lstat(path)
    is_ours = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)
    return stat.S_IFMT(status.st_mode) == is_kind and is_ours


def kept(name: str, suffix: str) -> Path | None:
    """The file that `keep` has stored under this name; None unless it is whole, our own, and in our own directory."""
    try:
        directory = cache_directory()
        if not is_own(directory, stat.S_IFDIR):
            return None
        return next((f for f in directory.glob(f"{name}-*{suffix}") if is_own(f) and f.name == _full(f, name)), None)
    except (OSError, RuntimeError):
        return None


def keep(file: Path, name: str) -> Path:
    """Store a copy of a file for `kept`, with its checksum in its name; OSError or RuntimeError where that fails."""
    directory = cache_directory()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_own(directory, stat.S_IFDIR):
        raise OSError(f"{directory} must be a directory that only its owner, this user, can write")
    target = directory / _full(file, name)
    with replaced(target) as partial:
        shutil.copyfile(file, partial)
    return target


def _full(file: Path, name: str) -> str:
    """The whole name of a file that is kept."""
    with file.open("rb") as handle:
        return f"{name}-{hashlib.file_digest(handle, 'sha256').hexdigest()}{file.suffix}"


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """The place for a new file of the cache, of mode 0600, which takes the file's name when the context ends well."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _clear_left(file.parent)
    handle, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem.partition('-')[0]}-", suffix=".partial")
    os.close(handle)
    try:
        yield Path(partial)
        os.chmod(partial, 0o600)
        os.replace(partial, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def _clear_left(directory: Path) -> None:
    """Remove what processes that were killed have left of files that they were writing."""
    for path in directory.glob(".*.partial"):
        with suppress(OSError):
            if is_own(path) and time.time() - path.stat().st_mtime > LEFT:
                path.unlink()
