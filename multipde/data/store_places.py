"""Directories for the stores of streams: one for a job on a machine, removed when none of its processes is left."""

import atexit
import hashlib
import os
import secrets
import shutil
import socket
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

from multipde.networks.user_cache import cache_directory
from multipde.runtime.launch import num_launched

HELD = "held"
"""The file of a directory on which each of its processes has a lock for as long as it lives."""
NEW = 60.0
"""Seconds after which a directory without a lock is taken for one that was left: its processes need time to lock it."""

_NUMBERS = count()
_LOCKS: list[int] = []


def new_place() -> Path:
    """A directory for a store, which the processes that torchrun has started on this machine share.

    Directories that no process holds are removed. Locks tell which: the number of a process says nothing of processes
    in another container or on another machine that shares the cache, and is given again.

    Raises:
        ValueError: it cannot be written.
    """
    above = cache_directory() / "streams"
    place = above / f"{_job() if num_launched() > 1 else secrets.token_hex(8)}-{next(_NUMBERS)}"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=num_launched() > 1)
        _hold(place)
        for old in above.iterdir():
            if old != place and not _is_held(old):
                shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"a directory for the stream must be writable, got {error}; set MULTIPDE_CACHE") from None
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def _job() -> str:
    """A name that the processes of a job on one machine have in common, and no other job has."""
    parts = [socket.gethostname(), str(os.getppid()), os.environ["MASTER_PORT"], os.environ.get("TORCHELASTIC_RUN_ID")]
    with suppress(OSError):  # the container and the time at which torchrun has started
        parts.append(os.readlink("/proc/self/ns/pid"))
        parts.append(Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _hold(place: Path) -> None:
    with suppress(ImportError, OSError):  # without locks
        import fcntl

        handle = os.open(place / HELD, os.O_RDWR | os.O_CREAT, 0o600)
        _LOCKS.append(handle)
        fcntl.flock(handle, fcntl.LOCK_SH)


def _is_held(place: Path) -> bool:
    """Whether a process holds a directory, or may be about to."""
    try:
        import fcntl

        if time.time() - place.stat().st_mtime < NEW:
            return True
        with open(place / HELD, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except (ImportError, OSError):
        return True
