"""Files with one JSON record per line (rows), to which rows are appended; reading stops at an incomplete line."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from multipde.storage.files import writing

LONG_LINE = 2**20
"""Largest length of a row in bytes."""


def check_rows(file: Path) -> None:
    """Raise OSError for a file to which no rows can be appended; the file system is left as it was."""
    with writing(file):
        is_new, missing = not file.exists(), [folder for folder in file.parents if not folder.exists()]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
        if is_new:
            file.unlink()
        for folder in missing:
            with suppress(OSError):  # another process has written into it
                folder.rmdir()


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a file, after removing an incomplete last line; OSError if the file cannot be written."""
    with writing(file), open(file, "ab+") as handle:
        _repair(handle)
        handle.write((json.dumps(row) + "\n").encode())
        handle.flush()
        os.fsync(handle.fileno())


def _repair(handle: BinaryIO) -> None:
    """Truncate a file after its last complete line."""
    end = handle.seek(0, os.SEEK_END)
    start = max(0, end - LONG_LINE)
    handle.seek(start)
    tail = handle.read()
    if tail and not tail.endswith(b"\n"):
        handle.truncate(start + tail.rfind(b"\n") + 1)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """All rows of a metrics file up to the first incomplete line; none if there is no file."""
    if not file.exists():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
