"""Reading JSON records from untrusted files into dataclasses, with checks of types and ranges."""

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import typeguard

from multipde.networks.limits import RECORD_BYTES
from multipde.storage.schema import FORMAT, Schema, check_plain

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


def read_file(file: Path, most: int = RECORD_BYTES) -> bytes:
    """The contents of a file of records; ValueError if it is missing, no regular file, or too long."""
    length = regular(file).stat().st_size
    if length > most:
        raise ValueError(f"{file} must be at most {most:,} bytes long, got {length:,}")
    return file.read_bytes()


def record_digest(file: Path) -> str:
    """SHA-256 of a file of records; empty if it cannot be read."""
    try:
        return hashlib.sha256(read_file(file)).hexdigest()
    except (OSError, ValueError):
        return ""


def read_record(file: Path, schema: Schema) -> dict[str, Any]:
    """A JSON record of this library that fits its schema; ValueError if it is missing, or another one.

    Bounds on its length, depth, texts and numbers are checked for the whole record before anything is made of it.
    """
    return record_of(read_file(file), file, schema)


def record_of(data: bytes, file: Path, schema: Schema) -> dict[str, Any]:
    """The record in the contents of a file, as `read_record` returns it."""
    record = parsed(data, file)
    if not isinstance(record, dict) or type(record.get("format")) is not int:
        raise ValueError(f"{file} must be a record of multipde, got no format number")
    if record["format"] > FORMAT:
        raise ValueError(f"{file} must have format {FORMAT} or older, got {record['format']}; update multipde")
    try:
        schema(record, "record")
    except ValueError as error:
        raise ValueError(f"{brief(error)} in {file}") from None
    return record


def parsed(data: bytes, file: Path) -> Any:
    """The value of a text of JSON within the bounds of `check_plain`; ValueError for any other."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} must be JSON, got {brief(error)}") from None
    try:
        check_plain(value)
    except ValueError as error:
        raise ValueError(f"{error} in {file}") from None
    return value


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
    except (TypeError, ArithmeticError, AttributeError, LookupError, RuntimeError) as error:
        raise ValueError(f"{file} must describe {what}, got {brief(error)}") from None
    return made


def check_kind(name: str, value: Any, annotation: Any) -> None:
    """Raise TypeError unless a value is of the annotated type."""
    try:
        typeguard.check_type(value, annotation, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
    except typeguard.TypeCheckError:
        raise TypeError(f"{name} of the wrong kind, {str(value)[:60]!r}") from None


def flat_record(record: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A nested record as one with names such as ``settings.seed`` and ``levels.0.size``."""
    found = {}
    for key, value in record.items():
        if isinstance(value, list | tuple) and value and all(isinstance(each, Mapping) for each in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            found |= flat_record(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found


def brief(error: BaseException) -> str:
    """The message of an error in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def json_bytes(record: Mapping[str, Any]) -> bytes:
    """A record as JSON, which represents all numbers exactly; numbers of NumPy and torch as plain ones."""
    return (json.dumps(record, indent=1, default=_plain) + "\n").encode()


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and not getattr(value, "ndim", 0):
        return value.item()
    if isinstance(value, (Path, torch.device)):
        return str(value)
    raise ValueError(f"settings must be numbers, texts and lists of them, got {type(value).__name__}")
