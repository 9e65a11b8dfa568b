"""What a run says: a line of metrics per epoch in a file, and the screen. Nothing else in the library prints."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from multipde.training.files import write_file, writing
from multipde.training.snapshot import Snapshot, write_snapshot
from multipde.training.tensorboard import Board

Advance = Callable[[float, str], None]


class Log:
    """Writes metrics.jsonl and talks to the user: a bar with the time left in a terminal, plain lines elsewhere.

    Args:
        file: metrics file, appended to; None writes none.
        quiet: say nothing.
        board: shows the same in TensorBoard.
    """

    def __init__(
        self,
        file: Path | None = None,
        quiet: bool = False,
        console: Console | None = None,
        board: Board | None = None,
    ):
        self.file, self.board = file, board
        self.console = console or Console(quiet=quiet, highlight=False, soft_wrap=True)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append one line to the metrics file."""
        if self.file is not None:
            append_row(self.file, row)
        if self.board is not None:
            self.board.row(row)

    def snapshot(self, index: int, snapshot: Snapshot) -> None:
        """Keep what the index-th level has come to beside the metrics file."""
        if self.file is not None:
            write_snapshot(self.file.parent, index, snapshot)
        if self.board is not None:
            self.board.snapshot(snapshot)

    def keep_rows(self, num: int) -> None:
        """Only the first so many lines of the metrics file, torn ones gone."""
        if self.file is not None:
            rows = read_metrics(self.file)[:num]
            write_file(self.file, "".join(json.dumps(row) + "\n" for row in rows).encode())
            if self.board is not None:
                self.board.restart(rows)

    def tested(self, confusion: Tensor) -> None:
        """The training is over and its network tested, see `Metrics`."""
        if self.board is not None:
            self.board.tested(confusion)

    def close(self) -> None:
        """Whatever is held back is written."""
        if self.board is not None:
            self.board.close()

    def say(self, text: str) -> None:
        """One line for the user."""
        self.console.print(text, markup=False)

    def table(self, rows: Sequence[Mapping[str, str]], title: str | None = None) -> None:
        """Rows with the same keys as a table, numbers to the right."""
        if self.console.is_terminal:
            table = Table(title=title, title_justify="left", title_style="bold")
            for name in rows[0]:
                table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=True)
            for row in rows:
                table.add_row(*row.values())
            self.console.print(table)
            return
        widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
        if title:
            self.say(title)
        for row in [{name: name for name in rows[0]}, *rows]:
            cells = (v.ljust(widths[k]) if k in LEFT else v.rjust(widths[k]) for k, v in row.items())
            self.say("  ".join(cells).rstrip())

    @contextmanager
    def progress(self, total: float, done: float = 0.0) -> Iterator[Advance]:
        """A bar over the whole work, advanced by shares of it; silent where there is no terminal."""
        if not self.console.is_terminal or self.console.quiet:
            yield lambda amount, text: None
            return
        columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("", total=total, completed=done)  # pyright: ignore[reportArgumentType]
            yield lambda amount, text: bar.update(task, advance=amount, description=text)


LONG_LINE = 2**20
"""No row is longer."""

LEFT = ("name", "class", "second", "true", "layer", "order", "method", "part", "verdict", "arm")
"""Columns of words."""


def check_rows(file: Path) -> None:
    """Raise OSError for a file to which no rows can be appended: before they are measured."""
    with writing(file):
        is_new = not file.exists()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
        if is_new:
            file.unlink()


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """One more line of a file of rows, such as `read_metrics` reads; a torn line before it is taken away.

    Raises:
        OSError: the file cannot be written.
    """
    with writing(file), open(file, "ab+") as handle:
        _repair(handle)
        handle.write((json.dumps(row) + "\n").encode())
        handle.flush()
        os.fsync(handle.fileno())


def _repair(handle: BinaryIO) -> None:
    """Cut a file off behind its last whole line."""
    end = handle.seek(0, os.SEEK_END)
    start = max(0, end - LONG_LINE)
    handle.seek(start)
    tail = handle.read()
    if tail and not tail.endswith(b"\n"):
        handle.truncate(start + tail.rfind(b"\n") + 1)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """All rows of a metrics file, a torn last line left out."""
    if not file.exists():
        return []
    rows = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
