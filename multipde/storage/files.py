"""Atomic writing of files and directories, with SHA-256 checksums: an error leaves no partial file."""

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
    """Replace any OSError raised in the context by one that names the file."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{target} must be writable, got: {error.strerror or error}") from None


def write_file(file: Path, data: bytes) -> None:
    """Write a file under another name, sync it to disk and rename it; on an OSError the previous file remains."""
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
    """Write a new directory of files and their checksums; on an OSError no directory is left."""
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
    """Write files into an existing directory, each with `write_file`, and finally their checksums."""
    for name, data in {**files, SUMS: checksums(files)}.items():
        write_file(directory / name, data)


def checksums(files: Mapping[str, bytes]) -> bytes:
    """The checksums of files in the format that ``sha256sum -c`` reads."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items())).encode()


def check_sums(directory: Path, *names: str) -> None:
    """Raise ValueError for a file that differs from its checksum; nothing is checked if there is no SHA256SUMS."""
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
    """Whether a path is a lock or a partially written file or directory."""
    return path.name == LOCK or fnmatch(path.name, PARTIAL)


def clear_partials(directory: Path) -> None:
    """Remove partially written files and directories."""
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
    """Sync the entries of a directory to disk, where the operating system supports it."""
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
