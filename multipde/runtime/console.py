"""Output for the user: lines, tables and a progress bar. Only this module prints."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

Advance = Callable[[float, str], None]


class Log:
    """Output for the user: a progress bar with the remaining time in a terminal, plain lines elsewhere."""

    def __init__(self, quiet: bool = False, console: Console | None = None):
        self.console = console or Console(quiet=quiet, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False)

    def table(self, rows: Sequence[Mapping[str, str]], title: str | None = None) -> None:
        """Print rows with the same keys as a table, numbers aligned to the right."""
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
        """A progress bar for the total work, which the returned function advances; it is shown in a terminal only."""
        if not self.console.is_terminal or self.console.quiet:
            yield lambda amount, text: None
            return
        columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("", total=total, completed=done)  # pyright: ignore[reportArgumentType]
            yield lambda amount, text: bar.update(task, advance=amount, description=text)


LEFT = ("name", "class", "second", "true", "layer", "order", "method", "part", "verdict", "arm")
"""Columns of text, aligned to the left."""
