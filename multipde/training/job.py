"""A job of several nodes, or one that torchrun starts again after a failure: one run directory for all of it."""

import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from multipde.runtime.launch import num_nodes, num_restarts
from multipde.runtime.processes import from_rank_zero, is_rank_zero, largest, on_rank_zero
from multipde.storage.records import record_digest
from multipde.storage.run_directory import RECORD, take_directory

PATIENCE = 10.0
"""Seconds within which a file that rank zero has written must be seen on the other nodes."""


def goes_on(run: Path | None) -> bool:
    """Whether the same command is to resume a run: torchrun has started its processes again, and the run had begun.

    All processes agree, although torchrun counts the restarts of every node by itself.

    Raises:
        ValueError: torchrun has several nodes or may start processes again, and no directory is given; or the nodes do
            not share it.
    """
    done, most = num_restarts()
    if num_nodes() == 1 and most == 0:
        return False
    if run is None:
        raise ValueError("run must be given where torchrun has several nodes or restarts, got none; type --run DIR")
    (done,) = largest(done)
    if not (done and on_rank_zero(lambda: (run / RECORD).exists())):
        return False
    check_shared(run)
    return True


def take_shared(run_dir: Path, held: ExitStack, record: Mapping[str, Any] | None = None) -> str:
    """Take a directory as `take_directory`, on rank zero, and check that all nodes see it and have the same data.

    If not, nothing of a new run is left.
    """
    note = on_rank_zero(lambda: take_directory(run_dir, held, record))
    try:
        check_shared(run_dir)
        own = (record or {}).get("provenance", {}).get("data", {}).get("sha256")
        first = from_rank_zero(own)
        if any(largest(first != own)):
            raise ValueError(
                f"data must be the same on all nodes, got checksum {str(first)[:12]}... on the first alone"
            )
    except ValueError:
        if record is not None and is_rank_zero():
            with suppress(OSError):
                (run_dir / RECORD).unlink()
        raise
    return note


def check_shared(run_dir: Path) -> None:
    """Raise ValueError in all processes where one of them does not see the record of a run as rank zero wrote it."""
    if num_nodes() == 1:
        return
    expected, until = on_rank_zero(lambda: record_digest(run_dir / RECORD)), time.monotonic() + PATIENCE
    while not (is_seen := record_digest(run_dir / RECORD) == expected) and time.monotonic() < until:
        time.sleep(0.1)  # network file systems show new files with a delay
    if any(largest(not is_seen)):
        raise ValueError(
            f"run must be a directory that all nodes share, got {run_dir}, which some do not see; "
            "type --run DIR with one on a shared file system"
        )
