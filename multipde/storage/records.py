"""Reading JSON records from untrusted files into dataclasses, with checks of types and ranges."""

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import typeguard

FORMAT = 1
"""Format number of the records that are written; older formats are read, too."""

RECORD_BYTES = 64 * 2**20
"""Largest length of a file of records."""

Kind = TypeVar("Kind")


def regular(file: Path) -> Path:
    """Return the path, or raise ValueError if it is not a regular file but a directory, device or pipe."""
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        raise ValueError(f"checkpoint must hold {file.name}, got none in {file.parent}") from None
    except OSError as error:
        raise ValueError(f"{file} must be readable, got: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{file} must be a regular file, got something else")
    return file


def read_file(file: Path) -> bytes:
    """The contents of a file of records; ValueError if it is missing, no regular file, or too long."""
    length = regular(file).stat().st_size
    if length > RECORD_BYTES:
        raise ValueError(f"{file} must be at most {RECORD_BYTES:,} bytes long, got {length:,}")
    return file.read_bytes()


def read_json(file: Path, newest: int) -> dict[str, Any]:
    """A JSON record of this library; ValueError if it is missing, not JSON, or of a format newer than ``newest``."""
    try:
        record = json.loads(read_file(file))
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
            raise ValueError(f"{file} must be JSON, got {brief(error)}") from None
        raise
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise ValueError(f"{file} must be a record of multipde, got no format number")
    if record["format"] > newest:
        raise ValueError(f"{file} must have format {newest} or older, got {record['format']}; update multipde")
    return record


def from_record(kind: type[Kind], record: Any, file: Path, what: str) -> Kind:
    """Make a dataclass from untrusted plain data; ValueError, which names ``what``, for wrong entries or values."""
    if not isinstance(record, dict):
        raise ValueError(f"{file} must describe {what}, got {type(record).__name__}")
    known: dict[str, Any] = kind.__dataclass_fields__  # pyright: ignore[reportAttributeAccessIssue]
    if unknown := sorted(set(record) - set(known)):
        raise ValueError(f"{file} must hold known entries only, got {unknown[0][:80]!r} in {what}")
    try:
        made = kind(**record)
        for name, field in known.items():
            check_kind(name, getattr(made, name), field.type)
    except ValueError as error:
        raise ValueError(f"{brief(error)} in {file}") from None
    except (TypeError, ArithmeticError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(f"{file} must describe {what}, got {brief(error)}") from None
    return made


def check_kind(name: str, value: Any, annotation: Any) -> None:
    """Raise TypeError unless a value is of the annotated type."""
    try:
        typeguard.check_type(value, annotation, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
    except typeguard.TypeCheckError:
        raise TypeError(f"{name} of the wrong kind, {str(value)[:60]!r}") from None


def brief(error: BaseException) -> str:
    """The message of an error in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def json_bytes(record: Mapping[str, Any]) -> bytes:
    """A record as JSON, which represents all numbers exactly."""
    return (json.dumps(record, indent=1) + "\n").encode()
