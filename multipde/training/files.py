"""Files that are there whole or not at all, with their checksums; and none read before it is known what it is."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import typeguard

SUMS, LOCK, PARTIAL = "SHA256SUMS", ".lock", ".*.partial-*"
RECORD_BYTES = 64 * 2**20
"""No record of ours is longer."""

Kind = TypeVar("Kind")


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Whatever the system finds wrong inside becomes one OSError that names the file."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{target} must be writable, got: {error.strerror or error}") from None


def write_file(file: Path, data: bytes) -> None:
    """Write a file whole or not at all: under another name, to the disk, renamed.

    Raises:
        OSError: the disk is full, the directory is gone or read-only; what was there before is still there.
    """
    partial = _partial(file)
    with writing(file):
        try:
            _write(partial, data)
            os.replace(partial, file)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        _sync_directory(file.parent)


def write_directory(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write a directory of files and their checksums: it is there whole or not at all.

    Raises:
        OSError: as `write_file`.
    """
    partial = _partial(directory)
    with writing(directory):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for name, data in {**files, SUMS: checksums(files)}.items():
                _write(partial / name, data)
            _sync_directory(partial)
            os.replace(partial, directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        _sync_directory(directory.parent)


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a directory that is there, each whole, their checksums last."""
    for name, data in {**files, SUMS: checksums(files)}.items():
        write_file(directory / name, data)


def checksums(files: Mapping[str, bytes]) -> bytes:
    """What ``sha256sum -c`` reads."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items())).encode()


def check_sums(directory: Path, *names: str) -> None:
    """Raise ValueError for a file that differs from its checksum; a directory without checksums is taken as it is."""
    if not (directory / SUMS).exists():
        return
    text = read_file(directory / SUMS).decode(errors="replace")
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in text.splitlines())}
    for name in names:
        with open(regular(directory / name), "rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        if sums.get(name) != found:
            raise ValueError(f"{directory / name} must have its checksum in {SUMS}, got another: it is damaged")


def regular(file: Path) -> Path:
    """The path of a file with contents, not of a directory, a device or a pipe.

    Raises:
        ValueError: anything else.
    """
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
    """The contents of a file of records.

    Raises:
        ValueError: a file that is missing, no file, or far too long.
    """
    length = regular(file).stat().st_size
    if length > RECORD_BYTES:
        raise ValueError(f"{file} must be at most {RECORD_BYTES:,} bytes long, got {length:,}")
    return file.read_bytes()


def read_json(file: Path, newest: int) -> dict[str, Any]:
    """A JSON record of ours.

    Args:
        newest: largest format number that is known.

    Raises:
        ValueError: a file that is missing, not a JSON record, or of a newer format.
    """
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
    """A dataclass from plain data that a stranger may have written.

    Args:
        what: it describes, for the error.

    Raises:
        ValueError: unknown or missing entries, values of the wrong kind or outside their range.
    """
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
    """What another library says, in one line that is not too long."""
    return " ".join(str(error).split())[:200]


def is_scratch(path: Path) -> bool:
    """Whether it is a lock, or what an interrupted writer left."""
    return path.name == LOCK or fnmatch(path.name, PARTIAL)


def clear_partials(directory: Path) -> None:
    """Remove what an interrupted writer left."""
    for partial in directory.glob(PARTIAL):
        shutil.rmtree(partial) if partial.is_dir() and not partial.is_symlink() else partial.unlink()


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def _write(file: Path, data: bytes) -> None:
    with open(file, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def _sync_directory(directory: Path) -> None:
    """Names to the disk, where the system has such a thing."""
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
