"""Names of files, which are bytes, whatever the locale is in which Python has decoded them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multipde.runtime.text import printable


def shown_name(path: Path) -> str:
    """The last part of a path read as UTF-8; bytes that are none and control characters become escape sequences."""
    return printable(os.fsencode(path.name).decode("utf-8", "surrogateescape"))


def in_order(path: Path) -> list[bytes]:
    """A key by which paths are sorted in the same way in every locale."""
    return [os.fsencode(part) for part in path.parts]


@contextmanager
def utf8_path(file: Path) -> Iterator[Path]:
    """Within the context, a path by which libraries can open the file that take every name for UTF-8."""
    if os.fsencode(file) == str(file).encode("utf-8", "replace"):
        yield file
        return
    with open(file, "rb") as handle:
        yield Path(f"/dev/fd/{handle.fileno()}")
