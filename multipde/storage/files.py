"""Atomic writing of files and directories, with SHA-256 checksums: an error leaves no partial file."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from multipde.networks.limits import ROWS_BYTES
from multipde.storage.lock import check_lock
from multipde.storage.opening import (
    clear_stale,
    make_directory,
    open_regular,
    partial_of,
    remove_flat,
    sync_directory,
    write_new,
    writing,
)
from multipde.storage.records import read_file, read_record, regular
from multipde.storage.schema import NETWORK

SUMS, CONFIG = "SHA256SUMS", "config.json"


def write_file(file: Path, data: bytes, keep_time: bool = False) -> None:
    """Write a file under another name, sync it to disk and rename it; on an OSError the previous file remains.

    With ``keep_time`` the new file has the time of the previous one: that of the record of a run says when it began.
    """
    partial = partial_of(file)
    check_lock(file)
    with writing(file):
        before = os.stat(file) if keep_time else None
        try:
            write_new(partial, data)
            if before is not None:
                os.utime(partial, ns=(before.st_atime_ns, before.st_mtime_ns))
            check_lock(file)
            os.replace(partial, file)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise
        sync_directory(file.parent)


def write_directory(directory: Path, files: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> None:
    """Write a new directory of files and their checksums; on an error no directory is left.

    Args:
        files: the contents by name; or pairs of both, each made when the one before it is written.
    """
    partial = partial_of(directory)
    check_lock(directory)
    with writing(directory):
        make_directory(partial.parent)
        clear_stale(directory)
        try:
            os.mkdir(partial)
            sums: dict[str, str] = {}
            pairs: Any = files.items() if isinstance(files, Mapping) else files
            for name, data in pairs:
                sums[name] = hashlib.sha256(data).hexdigest()
                write_new(partial / name, data)
            write_new(partial / SUMS, _text_of(sums))
            sync_directory(partial)
            check_lock(directory)
            os.replace(partial, directory)
        except BaseException:
            with suppress(OSError):
                remove_flat(partial)
            raise
        sync_directory(directory.parent)


def check_own(file: Path, mark: bytes, what: str) -> None:
    """Raise FileExistsError for a file that exists, is not empty, and does not hold the mark that our files have."""
    if not os.path.lexists(file):
        return
    try:
        with os.fdopen(open_regular(file, os.O_RDONLY), "rb") as handle:
            data = handle.read(ROWS_BYTES)
        is_ours = not data or mark in data
    except OSError:
        is_ours = False
    if not is_ours:
        raise FileExistsError(f"{file} must be new, or {what} that multipde wrote, got another; name a new file")


def checksums(files: Mapping[str, bytes]) -> bytes:
    """The checksums of files in the format that ``sha256sum -c`` reads."""
    return _text_of({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})


def _text_of(sums: Mapping[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode()


def recorded_sums(directory: Path) -> dict[str, str]:
    """The checksums that a directory records, by the names of the files; none where there is no record of them."""
    if not (directory / SUMS).exists():
        return {}
    lines = read_file(directory / SUMS).decode(errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def check_sums(directory: Path, *names: str) -> None:
    """Raise ValueError for a file that differs from its checksum, or is missing, or where there are no checksums.

    Args:
        names: the files; all that have a checksum if left out.
    """
    if not (directory / SUMS).exists():
        raise ValueError(f"{directory} must hold {SUMS}, got none: it has been deleted")
    sums = recorded_sums(directory)
    if strange := next((name for name in sums if name != Path(name).name), None):
        raise ValueError(f"{directory / SUMS} must name files beside it, got {strange[:80]!r}")
    for name in names or sums:
        with open(regular(directory / name), "rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        if sums.get(name) != found:
            raise ValueError(f"{directory / name} must have its checksum in {SUMS}, got another: it is damaged")


def check_network_sums(directory: Path, *names: str) -> None:
    """Raise ValueError for files of a network, or of a checkpoint, that differ from their checksums, or lack them in a
    format that has them."""
    if (directory / SUMS).exists() or read_record(directory / CONFIG, NETWORK)["format"] > 1:
        check_sums(directory, *names)
