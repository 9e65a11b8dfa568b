"""The directory of a run: the names of its files, its record, its checkpoints, and the lock while it is written."""

import inspect
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from multipde.data.datasets import load_data
from multipde.runtime.launch import launcher
from multipde.runtime.text import shell_line
from multipde.storage import schema
from multipde.storage.files import check_own, check_sums, write_file
from multipde.storage.lock import LOCK, check_lock, locked
from multipde.storage.opening import make_directory, remove_flat, writing
from multipde.storage.records import check_kind, json_bytes, read_record

CSV = "metrics.csv"
RECORD, RESULT, METRICS, PAGE, TRAINER = "run.json", "result.json", "metrics.jsonl", "report.html", "trainer.json"
PAGE_MARK = b": multipde report</title>"
"""The bytes by which a report is known to be ours."""
TRAINED = "trained.json"
"""Beside a converted network: what of the record of its training says on which images it was trained."""
KEPT = ("format", "network", "levels", "settings", "num_train", "data", "data_options")
"""What of it is kept there, besides the checksum of the images."""

CHECKPOINT = re.compile(r"checkpoint-([0-9]{4,9})")
PARTIAL = re.compile(
    r"\.((?:run|result|config|mlflow)\.json|metrics\.(?:jsonl|csv)|report\.html|SHA256SUMS"
    r"|(?:model|level-[0-9]+-[0-9]+px)\.safetensors|checkpoint-[0-9]+)\.partial-([0-9a-f]{16}|[0-9]+)"
)
"""Names of what a killed run leaves of a file or checkpoint that it was writing or removing."""


def check_new(directory: Path, advice: str = "", may_hold: re.Pattern[str] | None = None) -> None:
    """Raise FileExistsError for a directory that holds anything but regular files whose names ``may_hold`` matches."""
    if not os.path.lexists(directory):
        return
    if not directory.is_dir() or any(
        not (may_hold and may_hold.fullmatch(path.name) and path.is_file() and not path.is_symlink())
        for path in directory.iterdir()
    ):
        raise FileExistsError(f"directory must be new or empty, got {directory}{advice}")


def check_new_run(run_dir: Path, advice: str) -> None:
    """Raise FileExistsError for a directory that holds more than what a run leaves that was killed as it began."""
    check_new(run_dir, advice, re.compile(rf"{re.escape(LOCK)}|\.{re.escape(RECORD)}\.partial-[0-9a-f]{{16}}"))


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoints of a run, the newest first; a copy under another number is none."""
    found = _numbered(run)
    return [found[number] for number in sorted(found, reverse=True) if _is_number_of(found[number], number)]


def newest_checkpoint(run: Path) -> Path | None:
    """The directory of the newest training checkpoint of a run; None if there is none."""
    return next(iter(checkpoints_of(run)), None)


def is_unfinished(directory: Path) -> bool:
    """Whether a directory is that of a run without a result; the network beside its record may be half written."""
    return (directory / RECORD).exists() and not (directory / RESULT).exists()


def last_number(run: Path) -> int:
    """The largest number of a checkpoint of a run, or of a copy of one; 0 if there is none."""
    return max(_numbered(run), default=0)


def _numbered(run: Path) -> dict[int, Path]:
    """The checkpoints of a run, and copies of them, by the numbers in their names."""
    return {int(match[1]): path for path in run.glob("checkpoint-*") if (match := CHECKPOINT.fullmatch(path.name))}


def _is_number_of(checkpoint: Path, number: int) -> bool:
    """Whether a checkpoint was written under this number, or is too damaged to tell."""
    try:
        record = read_record(checkpoint / TRAINER, schema.CHECKPOINT)
        if record["state"]["checkpoints"] != number and record["format"] > 1:
            check_sums(checkpoint, TRAINER)
    except ValueError:
        return True
    return record["state"]["checkpoints"] == number


def clear_partials(directory: Path) -> None:
    """Remove what a killed run has not finished writing or removing; a directory that holds one is left alone."""
    for partial in sorted(directory.iterdir()):
        if not PARTIAL.fullmatch(partial.name):
            continue
        if not partial.is_dir() or partial.is_symlink():
            os.unlink(partial)
        elif not any(path.is_dir() and not path.is_symlink() for path in partial.iterdir()):
            remove_flat(partial)


def read_run_record(run: Path) -> dict[str, Any]:
    """The contents of run.json; ValueError if it is damaged."""
    check_recorded(run, RECORD)
    return read_record(run / RECORD, schema.RUN)


def training_record(directory: Path) -> dict[str, Any] | None:
    """The record of the training of a network: that of its run, or of the run from which it was converted; None if
    there is none. ValueError if it is damaged."""
    if (directory / RECORD).exists():
        return read_run_record(directory)
    if not (directory / TRAINED).exists():
        return None
    check_sums(directory, TRAINED)
    return read_record(directory / TRAINED, schema.RUN)


def training_files(directory: Path | None) -> dict[str, bytes]:
    """The file by name that keeps the record of a training beside a network that was converted from this one."""
    record = None if directory is None else training_record(directory)
    if record is None:
        return {}
    kept = {key: record[key] for key in KEPT if key in record}
    data = record.get("provenance", {}).get("data", {})
    return {TRAINED: json_bytes(kept | {"provenance": {"data": data}})}


def read_result(run: Path) -> dict[str, Any]:
    """The contents of result.json; ValueError if any file of the finished run is damaged or missing."""
    check_recorded(run)
    return read_record(run / RESULT, schema.RESULT)


def check_recorded(run: Path, *names: str) -> None:
    """Raise ValueError for files of a finished run, or any of them, that differ from their checksums or are missing."""
    if (run / RESULT).exists() and read_record(run / RESULT, schema.RESULT)["format"] > 1:
        check_sums(run, *names)


def recorded_data(directory: Path) -> tuple[str, dict[str, Any]] | None:
    """Name and options of the data on which the network of a directory was trained; None where there is no record, and
    for data that were given in Python."""
    record = training_record(directory)
    if record is None:
        return None
    name, options = record.get("data"), record.get("data_options", {})
    if name is None:
        return None
    parameters = inspect.signature(load_data).parameters
    try:
        for key, value in options.items():
            if key not in parameters or key in ("source", "size"):
                raise TypeError(f"an unknown option {key[:80]!r}")
            check_kind(key, value, parameters[key].annotation)
    except TypeError as error:
        raise ValueError(f"record in {directory} must name the data of a run, got {error}") from None
    return name, {
        key: value for key, value in options.items() if key != "download"
    }  # only what the user types may start a download


def moved_data(
    recorded: tuple[str, dict[str, Any]] | None, root: str | Path, is_named: bool
) -> tuple[str, dict[str, Any]]:
    """Recorded data at another root; ValueError for data that were given in Python or have no root."""
    name, options = recorded or ("data without a name", {})
    if not is_named or not options.get("root"):
        raise ValueError(
            f"root must be left out for a run on {name if is_named else 'data that are given'}, got {root}"
        )
    return name, options | {"root": resolved(root)}


def resolved(root: str | Path) -> str:
    """The directory of a data set as it is recorded: the same from every working directory."""
    return str(Path(root).expanduser().resolve())


def take_directory(run_dir: Path, held: ExitStack, record: Mapping[str, Any] | None = None) -> str:
    """Lock a run directory until the stack is closed, and remove what an interrupted write has left there.

    For a new run the directory is made, and ``record`` is written into it.

    Returns:
        A note for the user where nothing can be locked, else nothing.
    """
    if record is not None:
        with writing(run_dir):
            make_directory(run_dir)
    has_locks = held.enter_context(locked(run_dir))
    if record is not None:
        check_new_run(run_dir, "; another run took it meanwhile")
    clear_partials(run_dir)
    if record is not None:
        write_file(run_dir / RECORD, json_bytes(record))
    if has_locks:
        return ""
    return f"note: the file system of {run_dir} has no locks: a second training there would not be noticed"


def write_extended(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Replace the record of a finished run by one with more levels, and remove its result and report."""
    check_lock(run_dir / RESULT)
    (run_dir / RESULT).unlink(missing_ok=True)
    with suppress(FileExistsError):
        check_own(run_dir / PAGE, PAGE_MARK, "a report")
        (run_dir / PAGE).unlink(missing_ok=True)
    write_file(run_dir / RECORD, json_bytes(record), keep_time=True)


def resume_command(run: Path, network: Any, loss: Any = None) -> str:
    """The command that continues a run, with as many processes as now.

    Import paths of network and loss are named again, because no record makes a program import them.
    """
    paths = {"--arch": getattr(network, "import_path", ""), "--loss": getattr(loss, "import_path", "")}
    words = [word for option, path in paths.items() if path for word in (option, path)]
    return shell_line(*launcher(), "multipde", "train", "--run", run, "--resume", *words)
