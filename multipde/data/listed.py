"""Images that a CSV file lists: a column with the file, one with the class, and perhaps one with the part."""

import csv
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from multipde.data.folder import load_files, taken
from multipde.data.held_back import TEST_PARTS, needs_share, share_note, split_by_class
from multipde.data.image_data import ImageData

COLUMNS = {
    "file": ("file", "filename", "file_name", "filepath", "path", "image"),
    "label": ("label", "class", "category", "target"),
    "split": ("split", "part", "set", "subset"),
}
"""What the columns may be called; of each the first that is there is taken."""


def load_listed(
    file: Path, size: int | None, stream_files: bool | None, share: float | None, skip_bad: bool
) -> ImageData:
    """The images that a CSV file with a header lists, under the name of the file.

    Paths are relative to the file. The part is ``train``, or ``test``, ``val``, ``valid`` or ``validation``. Classes
    are sorted by name as the folders of `load_folder` are, whole numbers before them by their value.

    Raises:
        ValueError: the file cannot be read, has no such columns, an image is missing, or there are no test images.
    """
    rows, has_parts = _rows(file)
    parts, notes = {part.lower() for _, _, part in rows}, []
    names, named = sorted({label for _, label, _ in rows}, key=_place), sorted({part for _, _, part in rows})
    if share is not None and "train" in parts and parts & {*TEST_PARTS}:
        raise ValueError(f"test_share must be left out for {file.name}, which has test images, got {share}")
    part = next((name for name in TEST_PARTS if name in parts), "test")
    wanted = {"train"} if share is not None else {"train", part}
    if "train" in parts:
        kept = [row for row in rows if row[2].lower() in wanted]
        if num := len(rows) - len(kept):
            notes.append(f"left out of {file.name}: {num:,} rows of other parts")
        rows = kept
    _check_rows(file, rows)
    numbers = {name: k for k, name in enumerate(names)}
    paths = [file.parent / path for path, _, _ in rows]
    if not skip_bad and (missing := next((path for path in paths if not path.is_file()), None)):
        raise ValueError(f"{file} must list files that exist, got {missing}")
    labels = torch.tensor([numbers[label] for _, label, _ in rows])
    if share is None and not has_parts:
        raise needs_share(f"{file.name} without a column {COLUMNS['split'][0]!r}")
    if share is not None:
        train, test = split_by_class(labels, share)
        notes.append(share_note(share, len(test), len(rows), file.name))
    else:
        train, test = (torch.tensor([k for k, row in enumerate(rows) if row[2].lower() == p]) for p in ("train", part))
        if not (len(train) and len(test)):
            got = ", ".join(named)[:100]
            raise ValueError(f"{file} must have train and test in its column of parts, got {got}")
        if part != "test":
            notes.append(f"the test images are those of the part {part!r}")
    own_train, own_test = (taken((paths, labels), part) for part in (train, test))
    return load_files(file.stem, names, own_train, own_test, size, stream_files, notes, skip_bad)


def _rows(file: Path) -> tuple[list[tuple[str, str, str]], bool]:
    """File, class and part of every row, and whether there is a column for the part."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            columns = {what: _column(reader.fieldnames or (), names) for what, names in COLUMNS.items()}
            for what in ("file", "label"):
                if columns[what] is None:
                    got = ", ".join(reader.fieldnames or ())[:100] or "an empty file"
                    raise ValueError(f"{file} must have a header with the columns file and label, got {got}")
            rows = [tuple(_entry(row, columns[what]) for what in COLUMNS) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} must be a readable CSV file, got {' '.join(str(error).split())[:120]}") from None
    if not rows:
        raise ValueError(f"{file} must list images, got none")
    for number, row in enumerate(rows, start=2):
        if not (row[0] and row[1]):
            raise ValueError(f"{file} must name a file and a label in every row, got row {number} without one")
        if any(letter < " " for entry in row for letter in entry):
            got = f"{' '.join(row)[:80]!r} in row {number}; a quote may be missing"
            raise ValueError(f"{file} must have entries of one line, got {got}")
    return rows, columns["split"] is not None  # pyright: ignore[reportReturnType]


def _check_rows(file: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    """Raise ValueError for a file that is listed twice, or labels that are measured numbers."""
    seen: dict[str, str] = {}
    for path, label, _ in rows:
        if path in seen:
            got = f"with the labels {seen[path]} and {label}" if seen[path] != label else "twice"
            raise ValueError(f"{file} must list every image once, got {path} {got}")
        seen[path] = label
    if all(map(_is_number, seen.values())) and (part := next((v for v in seen.values() if float(v) % 1), None)):
        raise ValueError(f"{file} must have labels that name classes, got {part}")


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        return math.isfinite(float(text))
    return False


def _place(name: str) -> tuple[bool, int, str]:
    is_number = name.isascii() and name.isdigit()
    return not is_number, int(name) if is_number else 0, name


def _column(header: Sequence[str], names: Sequence[str]) -> str | None:
    by_name = {column.strip().lower(): column for column in header if column}
    return next((by_name[name] for name in names if name in by_name), None)


def _entry(row: Mapping[str, str | None], column: str | None) -> str:
    return "" if column is None else (row.get(column) or "").strip()
