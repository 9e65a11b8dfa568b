"""A lock that gives one process at a time access to a run directory."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multipde.storage.opening import NEW, PLAIN, open_regular, write_all, writing

LOCK = ".lock"
OWNER = re.compile(rb"process [0-9]{1,20}|p?|pr|pro|proc|proce|proces|process ?")
"""What a lock file holds: the process that has it, or had it when it was killed, perhaps while it wrote that."""

_HELD: list[tuple[Path, list[int]]] = []
"""Locked directories, and for each a list of the handle of its lock file; it is empty in a forked child."""


@contextmanager
def locked(directory: Path) -> Iterator[bool]:
    """Hold the lock of a directory within the context; ValueError if another process holds it.

    The operating system releases the lock whenever the process ends, and child processes do not inherit it.

    Yields:
        Whether the directory is locked; False on a file system without locks.
    """
    file, has_locks = directory / LOCK, True
    while True:
        handle = _opened(file)
        try:
            has_locks = _lock(handle)
        except BlockingIOError:
            owner = os.pread(handle, 40, 0).decode(errors="replace") or "another process"
            os.close(handle)
            raise ValueError(f"run must not be in use, got {directory}, which {owner} is training") from None
        if _is_same(handle, file):
            break
        os.close(handle)  # its owner removed the file meanwhile
    with writing(file):
        os.ftruncate(handle, 0)
        write_all(handle, f"process {os.getpid()}".encode())
    held = [handle]
    _HELD.append((directory, held))
    try:
        yield has_locks
    finally:
        _HELD.remove((directory, held))
        if held:
            if _is_same(handle, file):
                file.unlink(missing_ok=True)
            os.close(handle)


def seems_locked(directory: Path) -> bool:
    """Whether the process that is named in the lock of a directory is alive on this machine; nothing is locked."""
    try:
        handle = open_regular(directory / LOCK, os.O_RDONLY)
        try:
            owner = os.pread(handle, 40, 0).decode(errors="replace")
        finally:
            os.close(handle)
        os.kill(int(owner.removeprefix("process ")), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True


def check_lock(path: Path) -> None:
    """Raise OSError before a write into a directory that this process has locked and another one has replaced."""
    for directory, held in _HELD:
        if held and directory in path.parents and not _is_same(held[0], directory / LOCK):
            found = "another" if directory.is_dir() else "none"
            raise OSError(f"run directory must stay where it is while it is trained, got {found} at {directory}")


def _opened(file: Path) -> int:
    """A handle of the lock file: of a new one, or of one that a killed process of this user has left."""
    while True:
        with writing(file):
            try:
                return os.open(file, os.O_RDWR | NEW | PLAIN, 0o644)
            except FileExistsError:
                pass
            try:
                handle = open_regular(file, os.O_RDWR, own=True)
            except FileNotFoundError:
                continue
        if OWNER.fullmatch(os.pread(handle, 100, 0)):
            return handle
        os.close(handle)
        raise OSError(f"{file} must be the lock of a training, got another file")


def _lock(handle: int) -> bool:
    """Lock an open file; False where that is impossible, BlockingIOError where another process has locked it."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError):
        return False
    return True


def _is_same(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(file))
    except OSError:
        return False


def _drop_in_child() -> None:
    """Close a forked child's copies of the open lock files, so that it does not keep the locks."""
    for _, held in _HELD:
        os.close(held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_in_child)
