"""What hears of a training while it goes on: the metrics file, the files of levels, the screen, TensorBoard."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from multipde.runtime.console import Advance, Log
from multipde.storage.files import write_file
from multipde.storage.rows import append_row, read_metrics
from multipde.training.snapshot import Snapshot, write_snapshot


class Listener:
    """Is told what a training comes to; every method does nothing unless it is overridden."""

    def say(self, text: str) -> None:
        """One line for the user."""

    def restart(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Only these rows count, and the levels that were finished by then."""

    def row(self, row: Mapping[str, Any], planned_epochs: int) -> None:
        """An epoch is done and validated.

        Args:
            row: of the metrics file.
            planned_epochs: of its level, 0 where that is not known.
        """

    def level(self, index: int, size: int, snapshot: Snapshot) -> None:
        """The level in this place of the schedule, of this size, is done."""

    def tested(self, confusion: Tensor) -> None:
        """The training is over and its network tested, see `Metrics`."""

    def close(self) -> None:
        """Write what is held back."""


class RunFiles(Listener):
    """A line of metrics.jsonl per epoch, a file per level."""

    def __init__(self, metrics: Path):
        self.metrics = metrics

    def restart(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_file(self.metrics, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def row(self, row: Mapping[str, Any], planned_epochs: int) -> None:
        append_row(self.metrics, row)

    def level(self, index: int, size: int, snapshot: Snapshot) -> None:
        write_snapshot(self.metrics.parent, index, size, snapshot)


class Screen(Listener):
    """Lines on the screen."""

    def __init__(self, log: Log):
        self.log = log

    def say(self, text: str) -> None:
        self.log.say(text)

    def row(self, row: Mapping[str, Any], planned_epochs: int) -> None:
        self.log.say(
            f"size {row['size']:>3}  epoch {row['epoch']:>2}/{planned_epochs or '?'}  loss {row['train_loss']:.3f}  "
            f"train {row['train_accuracy']:6.1%}  validation {row['validation_accuracy']:6.1%}  "
            f"{row['images_per_second']:>6.0f} images/s  {row['total_seconds']:>5.0f} s"
        )


class Listeners(Listener):
    """All of them, told in order.

    Args:
        log: the screen; only rank zero has one that speaks.
        metrics: file of rows; None where none is written.
        others: further listeners.
    """

    def __init__(self, log: Log, metrics: Path | None = None, others: Sequence[Listener] = ()):
        self.log, self.metrics = log, metrics
        self.all = [*([RunFiles(metrics)] if metrics else []), *others, Screen(log)]

    def say(self, text: str) -> None:
        for each in self.all:
            each.say(text)

    def keep_rows(self, num: int) -> None:
        """Only the first so many rows of the metrics file count, torn ones are gone."""
        rows, level = read_metrics(self.metrics)[:num] if self.metrics else [], 0
        for row in rows:  # a run of an older version has counted its levels from the finest
            level += row.get("epoch") == 1
            row["level"] = level
        self.restart(rows)

    def restart(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for each in self.all:
            each.restart(rows)

    def row(self, row: Mapping[str, Any], planned_epochs: int) -> None:
        for each in self.all:
            each.row(row, planned_epochs)

    def level(self, index: int, size: int, snapshot: Snapshot) -> None:
        for each in self.all:
            each.level(index, size, snapshot)

    def tested(self, confusion: Tensor) -> None:
        for each in self.all:
            each.tested(confusion)

    def close(self) -> None:
        for each in self.all:
            each.close()

    def progress(self, total: float, done: float) -> AbstractContextManager[Advance]:
        """A bar over the whole work."""
        return self.log.progress(total, done)
