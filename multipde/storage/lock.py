"""A lock that gives one process at a time access to a run directory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multipde.storage.files import LOCK, writing


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory within the context; ValueError if another process holds it.

    The operating system releases the lock whenever the process ends, and child processes do not inherit it. On a file
    system without locks nothing is locked.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    file = directory / LOCK
    while True:
        with writing(file):
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 40, 0).decode(errors="replace") or "another process"
            os.close(handle)
            raise ValueError(f"run must not be in use, got {directory}, which {owner} is training") from None
        except OSError:
            pass  # a file system without locks
        if _is_same(handle, file):
            break
        os.close(handle)  # its owner removed the file meanwhile
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()}".encode(), 0)
    held = [handle]
    _HELD.append(held)
    try:
        yield
    finally:
        _HELD.remove(held)
        if held:
            if _is_same(handle, file):
                file.unlink(missing_ok=True)
            os.close(handle)


_HELD: list[list[int]] = []


def _is_same(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except OSError:
        return False


def _drop_in_child() -> None:
    """Close a forked child's copies of the open lock files, so that it does not keep the locks."""
    for held in _HELD:
        os.close(held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_in_child)
