"""A store by which the processes of one attempt find each other, without keys that an earlier attempt has left."""

import atexit
import os
import secrets
import socket
import sys
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

from multipde.runtime.launch import num_launched, num_restarts

if TYPE_CHECKING or dist.is_available():
    from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

PATIENCE = timedelta(minutes=5)
"""Time within which all processes must have started."""
ADDRESS = "multipde/store"
"""Key of torchrun's store under which rank zero names its own."""

LOST = "processes must all run until the end, got one that has ended"

_PRESENT: "list[TCPStore]" = []
"""The store of this attempt, if there is one."""


def job_store() -> "TCPStore | None":
    """The store that torchrun serves for all attempts of a job; None where it serves none."""
    if num_launched() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return connected(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))


def fresh_store(number: int = 0) -> "Store | None":
    """A store without the keys of others for the group of this number; None for the one that torch makes itself.

    torchrun keeps one store for all groups of a script and for all attempts of a job, so that the addresses of
    processes that have left are still in it. Where it cannot start the processes again, a prefix keeps groups apart.
    Else it counts the restarts of every node by itself, so that no prefix would be common to all nodes. Hence rank zero
    serves a new store for as long as it lives, and names its port and a random word in torchrun's; the others connect
    to it and compare the word, until they find the store of a rank zero that is alive.

    Raises:
        RuntimeError: not all processes have started within a few minutes.
    """
    if (common := job_store()) is None:
        return None
    if num_restarts()[1] == 0:
        return PrefixStore(f"multipde/{number}", common)
    host, address = os.environ["MASTER_ADDR"], f"{ADDRESS}/{number}"
    if os.environ["RANK"] == "0":
        word = secrets.token_hex(8)
        store = TCPStore(host, 0, num_launched(), is_master=True, wait_for_workers=False, timeout=PATIENCE)
        store.set("word", word)
        common.set(address, f"{store.port} {word}")
        _PRESENT[:] = [store]
        return store
    until = time.monotonic() + PATIENCE.total_seconds()
    while time.monotonic() < until:
        port, word = common.get(address).decode().split()
        try:
            with socket.create_connection((host, int(port)), 2):  # torch would try for seconds what is refused at once
                store = connected(host, int(port), timedelta(seconds=2))
            if store.get("word").decode() == word:
                store.set_timeout(PATIENCE)
                _PRESENT[:] = [store]
                return store
        except (RuntimeError, OSError):  # of an earlier attempt, whose rank zero has ended
            time.sleep(0.2)
    raise RuntimeError(f"processes must all start within {PATIENCE}; gloo has met none of rank 0")


def end_together() -> None:
    """Let all processes wait until the last one comes here, and end them at once, with exit status 0.

    The node of a process that has ended does not take part in another attempt, without which one that is killed a
    little later could not be started again. So what Python does when it exits is done before, and the time between the
    ends of two processes is that in which they learn of each other. Where torchrun cannot start processes again,
    nothing is done.

    Raises:
        ValueError: rank zero, or one that it waited for, has ended before.
    """
    if not _PRESENT:
        return
    store = _PRESENT.pop()
    try:
        if os.environ["RANK"] != "0":  # rank zero has a report to write
            while not store.check(["ended"]):
                time.sleep(0.2)
    except RuntimeError:
        raise ValueError(LOST) from None
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            file.flush()
    _meet(store)
    os._exit(0)


def _meet(store: "TCPStore") -> None:
    """Return in all processes within milliseconds, once all are here; last in rank zero, which serves the store."""
    others, until = num_launched() - 1, time.monotonic() + 10
    try:
        if os.environ["RANK"] == "0":
            store.set("ended", "")
            while store.add("here", 0) < others and time.monotonic() < until:
                time.sleep(0.01)
            store.set("all here", "")
            while store.add("left", 0) < others and time.monotonic() < until:
                time.sleep(0.002)
            return
        store.add("here", 1)
        store.get("all here")
        store.add("left", 1)
    except RuntimeError:
        raise ValueError(LOST) from None


def connected(host: str, port: int, timeout: timedelta = PATIENCE) -> "TCPStore":
    """A store that another process serves."""
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
