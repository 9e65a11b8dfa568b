"""A job of several nodes, or one that torchrun starts again after a failure: one run directory for all of it."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from multipde.runtime.fresh_store import job_store
from multipde.runtime.launch import num_nodes, num_restarts
from multipde.runtime.processes import from_rank_zero, is_rank_zero, largest, on_rank_zero
from multipde.storage.records import record_digest
from multipde.storage.run_directory import (
    RECORD,
    check_new_run,
    is_unfinished,
    read_run_record,
    take_directory,
    write_extended,
)
from multipde.training.checkpoint import read_newest
from multipde.training.schedule import Schedule
from multipde.training.state import TrainState

Added = TypeVar("Added")
TAKEN, LEVELS = "taken", "levels"
"""What is noted of a run in the store of the job: that it was taken, and how many levels it had before more came."""
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
    if not (done and on_rank_zero(lambda: (run / RECORD).exists() and _noted(run, TAKEN, otherwise="yes") is not None)):
        return False
    check_shared(run)
    return True


def take_shared(run_dir: Path, held: ExitStack, record: Mapping[str, Any] | None = None) -> str:
    """Take a directory as `take_directory`, on rank zero, and check that all nodes see it and have the same data.

    If not, nothing of a new run is left.
    """

    def take() -> str:
        if record is not None:
            check_new_run(run_dir, "; another run took it meanwhile")
        _note(run_dir, TAKEN, "yes")
        return take_directory(run_dir, held, record)

    note = on_rank_zero(take)
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


def levels_to_add(run: Path, asked: Sequence[Added], is_restarted: bool) -> list[Added]:
    """The levels by which a finished run is to be extended: those that were asked for, unless this job has added them.

    Args:
        is_restarted: whether an earlier attempt of this job has taken the run.
    """
    if not (is_restarted and asked):
        return list(asked)
    if job_store() is None:
        return [] if is_unfinished(run) else list(asked)

    def has_added() -> bool:
        before = _noted(run, LEVELS)
        return before is not None and len(read_run_record(run)["levels"]) > int(before)

    return [] if on_rank_zero(has_added) else list(asked)


def extend_record(run_dir: Path, record: Mapping[str, Any], before: int) -> None:
    """Replace the record of a finished run of ``before`` levels by one with more of them, on rank zero."""

    def extend() -> None:
        _note(run_dir, LEVELS, str(before))
        write_extended(run_dir, record)

    on_rank_zero(extend)


def read_agreed(
    checkpoints: Sequence[Path], schedule: Schedule
) -> tuple[nn.Module, dict[str, Tensor], TrainState, dict[str, Tensor], str]:
    """Read the checkpoint that rank zero finds whole, in all processes; arguments and errors as for `read_newest`.

    Raises:
        ValueError: some process cannot read that one, also not a little later.
    """
    found = []

    def first() -> int:
        found.append(read_newest(checkpoints, schedule))
        return found[0][2].checkpoints

    number, until = on_rank_zero(first), time.monotonic() + PATIENCE
    chosen = [path for path in checkpoints if path.name == f"checkpoint-{number:04d}"]
    while not found and time.monotonic() < until:
        try:
            found.append(read_newest(chosen, schedule))
        except ValueError:
            time.sleep(0.1)
    if any(largest(not found)):
        raise ValueError(f"checkpoint must be readable in all processes, got {chosen[0]}, which is not in some")
    return found[0]


def _note(run: Path, what: str, value: str) -> None:
    """Note something of a run for later attempts of this job, on rank zero, unless that is noted already."""
    if num_restarts()[1] and (store := job_store()) is not None and not store.check([_key(run, what)]):
        store.set(_key(run, what), value)


def _noted(run: Path, what: str, otherwise: str | None = None) -> str | None:
    """What an attempt of this job has noted of a run; ``otherwise`` where attempts have nothing in common."""
    if (store := job_store()) is None:
        return otherwise
    return store.get(_key(run, what)).decode() if store.check([_key(run, what)]) else None


def _key(run: Path, what: str) -> str:
    return f"multipde/{what}/{run.resolve()}"


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
