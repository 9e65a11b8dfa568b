"""Files with one JSON record per line (rows), to which rows are appended; reading stops at an incomplete line."""

import errno
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from multipde.networks.limits import ROW_BYTES, ROWS_BYTES
from multipde.storage.files import write_file
from multipde.storage.lock import check_lock
from multipde.storage.opening import open_regular, write_all, writing
from multipde.storage.records import brief, read_file
from multipde.storage.schema import ROW, Schema, check_plain, plain


def is_measured(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of a study, which records its machine."""
    machine = row.get("machine")
    return isinstance(machine, dict) and {"processor", "cores"} <= set(machine)


def is_epoch(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of the metrics of a run."""
    return {"epoch", "total_flops"} <= set(row)


def check_rows(file: Path, is_ours: Callable[[Any], bool] = is_measured) -> None:
    """Raise OSError for a file to which no rows can be appended; the file system is left as it was.

    That is also a file which is not empty and does not begin with a row that is ours.
    """
    is_new, missing = not os.path.lexists(file), [folder for folder in file.parents if not folder.exists()]
    if not is_new:
        with writing(file):
            os.close(_own_rows(file, is_ours))
        return
    with writing(file):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(file.parent, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        finally:
            for folder in missing:
                with suppress(OSError):  # another process has written into it
                    folder.rmdir()


def append_row(file: Path, row: Mapping[str, Any], is_ours: Callable[[Any], bool] = is_measured) -> None:
    """Append a row to a file, after removing an incomplete last line; OSError if the file cannot be written.

    Args:
        is_ours: whether a row is of the kind that the file must begin with; any other file is left as it is.
    """
    data = (json.dumps(row) + "\n").encode()
    if not os.path.lexists(file):
        write_file(file, data)
        return
    check_lock(file)
    with writing(file):
        handle = _own_rows(file, is_ours)
        try:
            _repair(handle)
            write_all(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)


def _own_rows(file: Path, is_ours: Callable[[Any], bool]) -> int:
    """A handle of a file that is empty or begins with such a row; OSError for any other."""
    handle = open_regular(file, os.O_RDWR | os.O_APPEND)
    first, newline, _ = os.pread(handle, ROW_BYTES, 0).partition(b"\n")
    with suppress(ValueError, TypeError, RecursionError):
        if not (first or newline) or (newline and is_ours(dict(json.loads(first)))):
            return handle
    os.close(handle)
    raise OSError("a file that does not begin with a row of this kind; name a new file")


def _repair(handle: int) -> None:
    """Truncate a file after its last complete line."""
    end = os.fstat(handle).st_size
    start = max(0, end - ROW_BYTES)
    tail = os.pread(handle, end - start, start)
    if tail and not tail.endswith(b"\n"):
        os.ftruncate(handle, start + tail.rfind(b"\n") + 1)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """All rows of the metrics of a run up to the first incomplete line; none if there is no file."""
    return _read(file, ROW)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All rows of a study up to the first incomplete line; none if there is no file."""
    return _read(file, plain)


def _read(file: Path, schema: Schema) -> list[dict[str, Any]]:
    """The rows, each of which must fit; ValueError for another one, and for a file that is none of rows."""
    if not file.exists():
        return []
    rows = []
    for number, line in enumerate(read_file(file, ROWS_BYTES).splitlines(), start=1):
        try:
            row = json.loads(line) if len(line) <= ROW_BYTES else None
        except (ValueError, RecursionError):
            break
        try:
            check_plain(row, "row")
            schema(row, "row")
        except ValueError as error:
            raise ValueError(f"{brief(error)} in line {number} of {file}") from None
        rows.append(row)
    return rows
