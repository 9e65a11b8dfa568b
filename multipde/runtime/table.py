"""Tables of text for the user."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]
Table = list[dict[str, str]]


def table_of(rows: Iterable[Row], columns: str) -> Table:
    """A table with a line per row, for columns such as ``name: {value} | other name: {other_value:.1f}``."""
    parts = [column.split(": ", 1) for column in re.split(r"\s+\|\s+", columns)]
    return [{name: text.format(**row) for name, text in parts} for row in rows]
