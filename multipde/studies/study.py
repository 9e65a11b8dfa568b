"""The common part of all studies: rows that are saved when they are measured, remaining tasks, and final tables."""

import json
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from multipde.runtime.console import Log
from multipde.runtime.table import Row, Table
from multipde.storage.files import write_file
from multipde.storage.provenance import machine, versions
from multipde.storage.records import brief
from multipde.storage.rows import append_row, check_rows, is_measured, read_rows

RowType = TypeVar("RowType", bound=Row)
Task = TypeVar("Task", bound=tuple[Any, ...])


class Study:
    """The rows of a study, which are appended to a file when they are measured, and shown at the end.

    Args:
        file: file of JSON lines; None keeps the rows in memory only.
        shared: values that all rows of this study have; other rows of the file do not belong to it.
        keys: names of the values that identify a row; a task is a tuple of these values.
        anew: ignore the rows that the file already has.
        replaces: measure every task anew; its row takes the place of the one in the file when the study is closed.
        earlier: shared values, and values of keys, that rows of earlier versions lack.
        first: values that the first row of a file of earlier versions has, by which the file is known to be ours; those
            of this study if left out.
    """

    def __init__(
        self,
        file: Path | None,
        shared: Row,
        keys: Sequence[str],
        *,
        anew: bool = False,
        replaces: bool = False,
        earlier: Row | None = None,
        first: Sequence[str] = (),
        log: Log | None = None,
    ):
        needed = set(first) if first else {*shared, *keys} - set(earlier or {})
        self._is_ours: Callable[[Any], bool] = lambda row: is_measured(row) or needed <= set(row)
        if file is not None:
            check_rows(file, self._is_ours)
        self.file, self.shared, self.keys, self.replaces = file, shared, keys, replaces
        self.earlier = earlier or {}
        self.log = log or Log(quiet=True)
        self._measured: set[tuple[Any, ...]] = set()
        found = [] if file is None or anew else read_rows(file)
        rows = matching([{**(earlier or {}), **row} for row in found], **shared)
        self.rows = [row for row in rows if row.keys() >= set(keys)]

    def missing(self, tasks: Iterable[Task]) -> list[Task]:
        """The tasks that have no row yet, each once."""
        done = {self._task(row) for row in self.rows}
        return [task for task in dict.fromkeys(tasks) if task not in done]

    def left(self, tasks: Iterable[Task], noun: str) -> list[Task]:
        """The tasks that have no row yet, each once; prints how many there are, with ``noun`` in the plural."""
        wanted = list(dict.fromkeys(tasks))
        left = self.missing(wanted)
        if self.file is not None:
            self.log.say(f"{len(wanted) - len(left)} of {len(wanted)} {noun} are in {self.file}; {len(left)} to do")
        return left

    def add(self, *task: Any, **values: Any) -> dict[str, Any]:
        """Save a row with the values of the keys, the measured values, the machine and the versions; return it."""
        row = {**self.shared, **dict(zip(self.keys, task, strict=True)), **values}
        row = json.loads(json.dumps(row | {"machine": machine(), "versions": versions()}))  # as it will be read
        self._measured.add(self._task(row))
        if self.replaces:
            self.rows = [other for other in self.rows if self._task(other) != self._task(row)]
        self.rows.append(row)
        if self.file is not None and not self.replaces:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            append_row(self.file, row, self._is_ours)
        return row

    def _replaces(self, row: Row) -> bool:
        """Whether a row of the file belongs to a task of this study that was measured anew."""
        return bool(matching([{**self.earlier, **row}], **self.shared)) and self._task(row) in self._measured

    def _task(self, row: Row) -> tuple[Any, ...]:
        """The task that a row belongs to; a list in it is a tuple."""
        return tuple(tuple(value) if isinstance(value, list) else value for value in map(row.get, self.keys))

    def close(
        self, tables: Mapping[str, Table], figure: Callable[[Path], None] | None = None, plot: Path | None = None
    ) -> list[dict[str, Any]]:
        """Print the tables and the paths of the files, draw the figure (by default beside the rows), return rows."""
        for title, table in tables.items():
            self.log.table(table, title)
        if self.file is not None and self.replaces:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            new = [row for row in self.rows if self._task(row) in self._measured]
            others = [row for row in read_rows(self.file) if not self._replaces(row)]
            write_file(self.file, "".join(json.dumps(row) + "\n" for row in [*others, *new]).encode())
        written = [] if self.file is None else [f"rows in {self.file}"]
        drawn = plot or (self.file and self.file.with_suffix(".svg"))
        if figure is not None and drawn is not None and self.rows:
            try:
                figure(drawn)
                written.append(f"figure in {drawn}")
            except Exception as error:  # matplotlib can fail in any way, and the rows are what was measured
                if plot is not None:
                    raise
                self.log.say(f"note: the figure is not written: {brief(error)}")
        if written:
            self.log.say(", ".join(written))
        return self.rows


def check_names(what: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise ValueError for the first name that is not known."""
    for name in names:
        if name not in known:
            raise ValueError(f"{what} must be among {', '.join(known)}, got {name!r}")


def matching(rows: Iterable[RowType], **values: Any) -> list[RowType]:
    """The rows that have all of these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in values.items())]


def mean_and_spread(values: Sequence[float], sign: bool = False, of_mean: bool = False) -> str:
    """The text "mean ± standard deviation", or only the mean for a single value.

    Args:
        sign: write the sign of the mean also where it is positive.
        of_mean: give the standard error of the mean instead of the standard deviation of the values.
    """
    mean = f"{statistics.mean(values):{'+' if sign else ''}.2f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values) / (len(values) ** 0.5 if of_mean else 1):.2f}"
