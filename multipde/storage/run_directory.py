"""What lies in the directory of a run, by name, and what it says of itself."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multipde.data.datasets import load_data
from multipde.storage.files import is_scratch
from multipde.storage.records import FORMAT, check_kind, read_json


def check_new(directory: Path, advice: str = "") -> None:
    """Raise FileExistsError for a directory in which something would be overwritten; a lock or half a file may be."""
    if directory.exists() and (not directory.is_dir() or any(not is_scratch(path) for path in directory.iterdir())):
        raise FileExistsError(f"directory must be new or empty, got {directory}{advice}")


def newest_checkpoint(run: Path) -> Path | None:
    """The newest trainer checkpoint of a run directory."""
    found = [path for path in run.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


RECORD, RESULT, METRICS, PAGE = "run.json", "result.json", "metrics.jsonl", "report.html"


def part_of(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An entry of a record that is a record itself; empty where it is not."""
    part = record.get(key)
    return part if isinstance(part, dict) else {}


def recorded_data(directory: Path) -> tuple[str, dict[str, Any]] | None:
    """Name and options of the data that a run was trained on; None for a directory that is no run."""
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
    return name, {key: value for key, value in options.items() if key != "download"}  # nothing is fetched unasked
