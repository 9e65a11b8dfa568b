"""Opening and making of files and directories among those of strangers: writing never follows a link."""

import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NEW = os.O_CREAT | os.O_EXCL
PLAIN = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
"""Flags with which every file is opened for writing."""

STALE = 3600
"""Seconds after which what is not whole has been left by a process that was killed."""

UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EISDIR)
"""Errors of a file system that cannot sync a directory; any other error means that the disk has failed."""


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Replace any OSError raised in the context by one that names the file."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{target} must be writable, got: {error.strerror or error}") from None


def partial_of(path: Path) -> Path:
    """A path beside another one, which nobody can guess, for what is not whole yet."""
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(8)}")


def clear_stale(path: Path) -> None:
    """Remove what killed processes have left of a file or directory that they were writing, if it is an hour old.

    A process that is still writing changes it more often than that. What belongs to another user is left alone.
    """
    left = re.compile(rf"\.{re.escape(path.name)}\.partial-[0-9a-f]{{16}}")
    with suppress(OSError):
        for partial in [path.with_name(name) for name in os.listdir(path.parent) if left.fullmatch(name)]:
            found = os.lstat(partial)
            if found.st_uid == getattr(os, "geteuid", lambda: 0)() and found.st_mtime < time.time() - STALE:
                remove_flat(partial) if stat.S_ISDIR(found.st_mode) else os.unlink(partial)


def write_new(file: Path, data: bytes) -> None:
    """Write a file that must not exist yet, and sync it to disk."""
    handle = os.open(file, os.O_WRONLY | NEW | PLAIN, 0o666)
    try:
        write_all(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(handle: int, data: bytes) -> None:
    """Write all bytes to an open file."""
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


def open_regular(file: Path, flags: int, own: bool = False) -> int:
    """Open an existing regular file, which is ``own`` if it belongs to this user and has no other name; OSError for a
    link or anything else."""
    try:
        handle = os.open(file, flags | PLAIN)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise OSError(error.errno, "no regular file") from None
        raise
    found = os.fstat(handle)
    is_own = not own or (found.st_nlink == 1 and found.st_uid == getattr(os, "geteuid", lambda: found.st_uid)())
    if stat.S_ISREG(found.st_mode) and is_own:
        return handle
    os.close(handle)
    raise OSError(errno.EPERM, "no regular file of your own" if own else "no regular file")


def make_directory(directory: Path) -> None:
    """Make a directory and those above it where they are missing, and sync their names to disk."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    with suppress(FileExistsError):  # made meanwhile, unless it is a file
        os.mkdir(directory)
    if not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    sync_directory(directory.parent)


def remove_flat(directory: Path) -> None:
    """Remove a directory of files, in which there must be no directory; links are removed and not followed."""
    for name in sorted(os.listdir(directory)):
        os.unlink(directory / name)
    os.rmdir(directory)


def sync_directory(directory: Path) -> None:
    """Sync the entries of a directory to disk, where the operating system can; OSError if the disk fails."""
    try:
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
