"""Tables of text for the user: rows from a format, and their lines within the width of a terminal."""

import re
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from multipde.runtime.text import printable

Row = Mapping[str, Any]
Table = list[dict[str, str]]

LEFT = ("name", "class", "second", "true", "layer", "order", "method", "part", "verdict", "arm")
"""Columns of text, aligned to the left and shortened where the terminal is narrow."""
SHORT = 10
"""Width to which such columns may be shortened."""


def table_of(rows: Iterable[Row], columns: str) -> Table:
    """A table with a line per row, for columns such as ``name: {value} | other name: {other_value:.1f}``."""
    parts = [column.split(": ", 1) for column in re.split(r"\s+\|\s+", columns)]
    return [{name: text.format(**row) for name, text in parts} for row in rows]


def table_lines(rows: Sequence[Mapping[str, str]], width: int | None = None) -> list[str]:
    """The lines of a table, none longer than ``width`` columns of a terminal as far as possible.

    Where the table is too wide, long headers are broken between words, then columns of text are shortened in the
    middle. If that does not suffice, every row becomes a block with a line per column, so that no column is lost.

    >>> print("\\n".join(table_lines([{"name": "disc", "accuracy": "93.1%"}])))
    name  accuracy
    disc     93.1%
    >>> print("\\n".join(table_lines([{"name": "disc", "accuracy": "93.1%"}], width=11)))
    name      disc
    accuracy  93.1%
    """
    names = list(rows[0])
    cells = [[printable(row[name]) for name in names] for row in rows]
    headers = [[printable(name)] for name in names]
    widths = [max(_width(line[k]) for line in (*cells, [header[0] for header in headers])) for k in range(len(names))]
    if width is not None and _total(widths) > width:
        inner = [max(_width(line[k]) for line in cells) for k in range(len(names))]
        headers = [textwrap.wrap(names[k], max(inner[k], *map(len, names[k].split()))) for k in range(len(names))]
        widths = [max(inner[k], *map(_width, headers[k])) for k in range(len(names))]
        for k in sorted((k for k, name in enumerate(names) if name in LEFT), key=lambda k: -widths[k]):
            excess = max(0, _total(widths) - width)
            widths[k] = max(widths[k] - excess, min(widths[k], SHORT))
        if _total(widths) > width:
            return _blocks(names, cells)
    high = max(map(len, headers))
    padded = [[""] * (high - len(header)) + header for header in headers]
    return [_line(names, row, widths) for row in (*zip(*padded, strict=True), *cells)]


def _line(names: Sequence[str], row: Sequence[str], widths: Sequence[int]) -> str:
    parts = []
    for name, cell, width in zip(names, row, widths, strict=True):
        shown = _shortened(cell, width)
        space = " " * (width - _width(shown))
        parts.append(shown + space if name in LEFT else space + shown)
    return "  ".join(parts).rstrip()


def _blocks(names: Sequence[str], cells: Iterable[Sequence[str]]) -> list[str]:
    longest, lines = max(map(_width, names)), []
    for row in cells:
        lines += [f"{name}{' ' * (longest - _width(name))}  {cell}" for name, cell in zip(names, row, strict=True)]
        lines.append("")
    return lines[:-1]


def _shortened(text: str, width: int) -> str:
    """The text without its middle, if it is wider than that."""
    if _width(text) <= width:
        return text
    start, end = text, text
    while _width(start) > (width - 2) // 2:
        start = start[:-1]
    while _width(end) > width - 2 - _width(start):
        end = end[1:]
    return f"{start}..{end}"


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _width(text: str) -> int:
    """Columns of a terminal that a text takes: two for a wide character, none for a mark above another one."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
