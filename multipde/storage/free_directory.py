"""A directory for a new run, with the next free number."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from multipde.runtime.launch import is_rank_zero_launched
from multipde.storage.opening import writing


@contextmanager
def free_directory(data: str, dynamics: str) -> Iterator[Path]:
    """Make the directory runs/DATA-DYNAMICS-N with the smallest N that is free, and remove it if it stays empty.

    Making it is what takes the number, so that trainings that start at the same time have one each. Of several
    processes of one training, rank zero makes it, and the others do not need its name.
    """
    if not is_rank_zero_launched():
        yield Path("runs")
        return
    for number in itertools.count(1):
        path = Path("runs") / f"{data}-{dynamics}-{number}"
        with writing(path), suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    try:
        yield path
    finally:
        for empty in (path, path.parent):
            with suppress(OSError):
                empty.rmdir()
