"""What all studies share: rows that are kept as they are measured, what is left to do, and the tables at the end."""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from multipde.runtime.console import Log
from multipde.storage.files import write_file
from multipde.storage.provenance import machine, versions
from multipde.storage.rows import append_row, check_rows, read_metrics

Row = Mapping[str, Any]
Table = list[dict[str, str]]
RowType = TypeVar("RowType", bound=Row)
Task = TypeVar("Task", bound=tuple[Any, ...])


class Study:
    """The rows of a study, appended to a file as they are measured, and what is shown of them at the end.

    Args:
        file: of JSON lines; None keeps the rows in memory only.
        shared: values that all rows of this study have; other rows of the file do not belong to it.
        keys: names of the values that tell one row from another.
        anew: rows that the file has already do not count.
        replaces: the file is written as a whole when the study is closed, instead of being appended to.
    """

    def __init__(
        self,
        file: Path | None,
        shared: Row,
        keys: Sequence[str],
        *,
        anew: bool = False,
        replaces: bool = False,
        log: Log | None = None,
    ):
        if file is not None:
            check_rows(file)
        self.file, self.shared, self.keys, self.replaces = file, shared, keys, replaces
        self.log = log or Log(quiet=True)
        earlier = [] if file is None or anew or replaces else read_metrics(file)
        self.rows = [row for row in matching(earlier, **shared) if row.keys() >= set(keys)]

    def left(self, tasks: Iterable[Task], noun: str) -> list[Task]:
        """The tasks without a row, each once; says how many there are, with their noun in the plural."""
        wanted = list(dict.fromkeys(tasks))
        done = {tuple(row[key] for key in self.keys) for row in self.rows}
        left = [task for task in wanted if task not in done]
        if self.file is not None:
            self.log.say(f"{len(wanted) - len(left)} of {len(wanted)} {noun} are in {self.file}; {len(left)} to do")
        return left

    def add(self, *task: Any, **values: Any) -> dict[str, Any]:
        """Keep a row: the values of the keys, what was measured, and the machine and the versions that gave it."""
        row = {**self.shared, **dict(zip(self.keys, task, strict=True)), **values}
        row = json.loads(json.dumps(row | {"machine": machine(), "versions": versions()}))  # as it will be read
        self.rows.append(row)
        if self.file is not None and not self.replaces:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            append_row(self.file, row)
        return row

    def close(
        self, tables: Mapping[str, Table], figure: Callable[[Path], None] | None = None, plot: Path | None = None
    ) -> list[dict[str, Any]]:
        """Show the tables by their titles, draw the figure, say where everything is, and return the rows.

        Args:
            plot: file of the figure; None for the one beside the rows.
        """
        for title, table in tables.items():
            self.log.table(table, title)
        if self.file is not None and self.replaces:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_file(self.file, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        written = [] if self.file is None else [f"rows in {self.file}"]
        plot = plot or (self.file and self.file.with_suffix(".svg"))
        if figure is not None and plot is not None and self.rows:
            figure(plot)
            written.append(f"figure in {plot}")
        if written:
            self.log.say(", ".join(written))
        return self.rows


def matching(rows: Iterable[RowType], **values: Any) -> list[RowType]:
    """The rows that have all of these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in values.items())]


def table_of(rows: Iterable[Row], columns: str) -> Table:
    """A line per row. The columns are ``name: {value} | other name: {other_value:.1f}``, with the values of a row."""
    parts = [column.strip().split(": ", 1) for column in columns.split("|")]
    return [{name: text.format(**row) for name, text in parts} for row in rows]


def mean_and_spread(values: Sequence[float], sign: bool = False) -> str:
    """Mean ± standard deviation; the mean alone of a single value."""
    mean = f"{statistics.mean(values):{'+' if sign else ''}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean
