"""TODO"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from multipde.storage.records import read_file, regular

SUMS, LOCK, PARTIAL = "SHA256SUMS", ".lock", ".*.partial-*"


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
