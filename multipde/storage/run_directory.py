"""The directory of a run: the names of its files, its record, and the lock under which it is written."""

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from multipde.data.datasets import load_data
from multipde.storage.files import clear_partials, is_scratch, write_file, writing
from multipde.storage.lock import locked
from multipde.storage.records import FORMAT, check_kind, json_bytes, read_json

RECORD, RESULT, METRICS, PAGE = "run.json", "result.json", "metrics.jsonl", "report.html"


def check_new(directory: Path, advice: str = "") -> None:
    """Raise FileExistsError for a directory that holds more than a lock or partially written files."""
    if directory.exists() and (not directory.is_dir() or any(not is_scratch(path) for path in directory.iterdir())):
        raise FileExistsError(f"directory must be new or empty, got {directory}{advice}")


def newest_checkpoint(run: Path) -> Path | None:
    """The directory of the newest training checkpoint of a run; None if there is none."""
    found = [path for path in run.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def part_of(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The entry of a record that is itself a record; empty if it is missing or of another type."""
    part = record.get(key)
    return part if isinstance(part, dict) else {}


def recorded_data(directory: Path) -> tuple[str, dict[str, Any]] | None:
    """Name and options of the data of a run; None for a directory that is no run or data that were given in Python."""
    file = directory / RECORD
    if not file.exists():
        return None
    record = read_json(file, FORMAT)
    name, options = record.get("data"), record.get("data_options", {})
    if name is None:
        return None
    parameters = inspect.signature(load_data).parameters
    try:
        check_kind("data", name, str)
        check_kind("data_options", options, dict[str, Any])
        for key, value in options.items():
            if key not in parameters or key in ("source", "size"):
                raise TypeError(f"an unknown option {key[:80]!r}")
            check_kind(key, value, parameters[key].annotation)
    except TypeError as error:
        raise ValueError(f"{file} must name the data of a run, got {error}") from None
    return name, {
        key: value for key, value in options.items() if key != "download"
    }  # only what the user types may start a download


def take_directory(run_dir: Path, held: ExitStack, record: Mapping[str, Any] | None = None) -> None:
    """Lock a run directory until the stack is closed, and remove what an interrupted write has left there.

    For a new run the directory is made, and ``record`` is written into it.
    """
    if record is not None:
        with writing(run_dir):
            run_dir.mkdir(parents=True, exist_ok=True)
    held.enter_context(locked(run_dir))
    if record is not None:
        check_new(run_dir, "; another run took it meanwhile")
    clear_partials(run_dir)
    if record is not None:
        write_file(run_dir / RECORD, json_bytes(record))


def write_extended(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Replace the record of a finished run by one with more levels, and remove its result and report."""
    for name in (RESULT, PAGE):
        (run_dir / name).unlink(missing_ok=True)
    write_file(run_dir / RECORD, json_bytes(record))


def resume_command(run: Path, network: Any) -> str:
    """The command that continues a run; an import path is named again, because no record makes a program import it."""
    arch = getattr(network, "import_path", "")
    return f"multipde train --run {run} --resume" + (f" --arch {arch}" if arch else "")
