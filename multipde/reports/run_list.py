"""A table of the runs below a directory."""

import io
import math
import os
from collections.abc import Iterator, Mapping
from csv import DictWriter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from multipde.reports.run_record import reached
from multipde.runtime.console import Log
from multipde.runtime.table import table_of
from multipde.runtime.text import printable
from multipde.storage.lock import seems_locked
from multipde.storage.run_directory import RECORD

COLUMNS = """name: {name} | network: {network} | data: {data} | sizes: {sizes} | state: {state} | accuracy: {shown}
    | TFLOPs: {work:.3g} | minutes: {minutes:.1f}"""
KEYS: tuple[str, ...] = ("name", "network", "data", "sizes", "state", "accuracy", "tflops", "minutes", "began")
DEPTH = 6
"""Levels of folders below the given one that are looked through."""


def list_runs(
    place: Path, *, sort: str = "began", json: bool = False, csv: bool = False, log: Log | None = None
) -> list[dict[str, Any]]:
    """Find the runs in a directory and below it, and print a table of them.

    Args:
        sort: the entry by which they are sorted, one of `KEYS`; accuracy from the highest on, all others upwards.
        json, csv: print them as JSON, or as comma-separated values, instead.

    Returns:
        For every run a record of the entries `KEYS`. The accuracy is that on the test images of a finished run, and the
        last one on validation images otherwise. A run that cannot be read says in ``state`` what is wrong.

    Raises:
        ValueError: there is no such directory, or no such entry.
    """
    if not place.is_dir():
        raise ValueError(f"runs must be in a directory, got {place}, which is none; a training makes runs/NAME")
    if sort not in KEYS:
        raise ValueError(f"sort must be one of {', '.join(KEYS)}, got {sort!r}")
    if json and csv:
        raise ValueError("csv must be left out with json, got both")
    found = [_record(run, place) for run in _runs(place)]
    sign = -1 if sort == "accuracy" else 1
    found.sort(
        key=lambda row: (row[sort] is None, sign * row[sort] if isinstance(row[sort], float) else row[sort] or "")
    )
    if log is None:
        return found
    if json:
        log.json({"runs": found})
    elif csv:
        for line in _csv_lines(found):
            log.say(line)
    elif found:
        log.table(table_of(map(_shown, found), COLUMNS), f"{len(found)} runs in {place}")
    else:
        log.say(f"no runs in {place}")
    return found


def _runs(place: Path) -> Iterator[Path]:
    """The directories with a record of a run, not through links, and not within a run."""
    for directory, folders, files in os.walk(place):
        depth = len(Path(directory).relative_to(place).parts)
        if RECORD in files:
            yield Path(directory)
            folders.clear()
        elif depth >= DEPTH:
            folders.clear()


def _record(run: Path, place: Path) -> dict[str, Any]:
    """The entries of a run; of one that cannot be read only its name and what is wrong."""
    name = str(run.relative_to(place)) if run != place else run.resolve().name
    row: dict[str, Any] = dict.fromkeys(KEYS) | {"name": name}
    try:
        found = reached(run)
        row |= found.figures | found.spent
        row["began"] = datetime.fromtimestamp(os.stat(run / RECORD).st_mtime, UTC).isoformat(timespec="seconds")
        if found.result:
            row |= {"state": "finished", "accuracy": found.result["test_accuracy"]}
        else:
            row["state"] = "running" if seems_locked(run) else "stopped"
            row["accuracy"] = found.rows[-1]["validation_accuracy"] if found.rows else None
    except (ValueError, OSError) as error:
        row["state"] = " ".join(str(error).split())[:200]
    return row


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    accuracy = row["accuracy"]
    plain = {key: "-" if row[key] is None else row[key] for key in ("network", "data", "sizes", "state")}
    share = "-" if accuracy is None else f"{accuracy:.2%}" + ("" if row["state"] == "finished" else " (validation)")
    work, minutes = (math.nan if row[key] is None else row[key] for key in ("tflops", "minutes"))
    return {"name": row["name"], **plain, "shown": share, "work": work, "minutes": minutes}


def _csv_lines(rows: list[dict[str, Any]]) -> list[str]:
    text = io.StringIO()
    writer = DictWriter(text, KEYS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: printable(v) if isinstance(v, str) else v for key, v in row.items()} for row in rows)
    return text.getvalue().splitlines()
