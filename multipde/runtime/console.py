"""Output for the user: lines, tables and a progress bar. Only this module prints."""

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from multipde.runtime.table import table_lines
from multipde.runtime.text import printable

Advance = Callable[[float, str], None]


class StandardOutput:
    """The present standard output, or that for errors, as a file. What its encoding lacks becomes an escape sequence.

    Standard output may be closed, be on a full disk, or have lost its reader. That is told once on standard error, and
    the program goes on, because what it computes is worth more than what it tells.

    Args:
        needed: let such an error through, for commands whose result is what they print.
        stream: ``"stdout"`` or ``"stderr"``.
    """

    is_lost = False
    """Whether a line could not be written in this process."""

    def __init__(self, needed: bool = False, stream: str = "stdout"):
        self.needed, self.name = needed, stream

    @property
    def stream(self) -> Any:
        """The present stream, None if it was closed before the program started."""
        return getattr(sys, self.name)

    @property
    def encoding(self) -> str:
        return getattr(self.stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        try:
            return self.stream.isatty()
        except (AttributeError, OSError, ValueError):  # none, or closed
            return False

    def write(self, text: str) -> int:
        try:
            if self.stream is None:
                raise OSError("it is closed")
            self.stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            self.stream.flush()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            if self.needed:
                raise (
                    error
                    if isinstance(error, BrokenPipeError)
                    else OSError(f"standard output must be writable, got: {reason}")
                ) from None
            if not StandardOutput.is_lost:
                StandardOutput.is_lost = True
                complain(f"note: nothing can be shown any more, because standard output fails: {reason}")
        return len(text)

    def flush(self) -> None:
        """Do nothing, because every text is flushed when it is written."""


def complain(text: str) -> None:
    """Print a line on standard error, if that is possible."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(f"multipde: {printable(' '.join(text.splitlines()))}\n")
            sys.stderr.flush()


class Log:
    """Output for the user: a progress bar with the remaining time in a terminal, plain lines elsewhere.

    Args:
        quiet: print nothing; others as in `StandardOutput`.
    """

    def __init__(self, quiet: bool = False, needed: bool = False, stream: str = "stdout"):
        self.quiet, self.out = quiet, StandardOutput(needed, stream)
        self._bar: Any = None

    def say(self, text: str) -> None:
        """Print one line."""
        self._show([printable(text)])

    def table(self, rows: Sequence[Mapping[str, str]], title: str | None = None) -> None:
        """Print rows with the same keys as a table, numbers aligned to the right."""
        width = shutil.get_terminal_size().columns if self.out.isatty() else None
        self._show([*([printable(title)] if title else []), *table_lines(rows, width)])

    def json(self, record: Mapping[str, Any]) -> None:
        """Print a record as a line of JSON, which has no NaN and no infinity: they become null."""
        self._show([json.dumps(finite(record), allow_nan=False)])

    def _show(self, lines: Sequence[str]) -> None:
        text = "\n".join(lines)
        if self.quiet:
            return
        if self._bar is None:
            self.out.write(f"{text}\n")
            return
        from rich.text import Text

        self._bar.console.print(Text(text), soft_wrap=True)

    @contextmanager
    def progress(self, total: float, done: float = 0.0) -> Iterator[Advance]:
        """A progress bar for the total work, which the returned function advances; it is shown in a terminal only."""
        if self.quiet or not self.out.isatty():
            yield lambda amount, text: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        text = TextColumn("{task.description}", markup=False)
        columns = [text, BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]
        console: Any = Console(file=StandardOutput(), markup=False, emoji=False, highlight=False)  # pyright: ignore
        ours: Any = {"redirect_stdout": False, "redirect_stderr": False}
        with Progress(*columns, console=console, transient=True, **ours) as bar:
            task = bar.add_task("", total=total, completed=done)  # pyright: ignore[reportArgumentType]
            self._bar = bar
            try:
                yield lambda amount, text: bar.update(task, advance=amount, description=printable(text))
            finally:
                self._bar = None


def finite(value: Any) -> Any:
    """The value with None for every float that is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
