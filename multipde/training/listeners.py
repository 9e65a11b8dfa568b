"""Listeners, to which a training reports its progress: metrics file, files of levels, screen and TensorBoard."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from multipde.runtime.console import Log
from multipde.storage.files import write_file
from multipde.storage.records import brief
from multipde.storage.rows import append_row, is_epoch, read_metrics
from multipde.training.level import size_text
from multipde.training.snapshot import Snapshot, write_snapshot


class Listener:
    """Receives the events of a training; a subclass overrides the methods for those it needs."""

    name = ""
    """What it writes, for the user."""

    def say(self, text: str) -> None:
        """Receive a line of text for the user."""

    def restart(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Discard everything recorded after these rows, because training continues from there."""

    def row(self, row: Mapping[str, Any], planned_epochs: int) -> None:
        """Receive the row of the metrics file for an epoch, and the level's number of epochs, 0 if it is not known."""

    def level(self, index: int, size: int, snapshot: Snapshot) -> None:
        """Receive the snapshot of a finished level, with its index in the schedule and its size in pixels."""

    def tested(self, confusion: Tensor) -> None:
        """Receive the confusion matrix of the test images, see `Metrics`."""

    def close(self) -> None:
        """Write everything that is still buffered."""


class RunFiles(Listener):
    """Writes a line of metrics.jsonl per epoch and a file per level."""

    def __init__(self, metrics: Path):
        self.metrics = metrics

    def restart(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_file(self.metrics, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def row(self, row: Mapping[str, Any], planned_epochs: int) -> None:
        append_row(self.metrics, row, is_epoch)

    def level(self, index: int, size: int, snapshot: Snapshot) -> None:
        write_snapshot(self.metrics.parent, index, size, snapshot)


class Screen(Listener):
    """Prints lines on the screen."""

    def __init__(self, log: Log):
        self.log = log

    def say(self, text: str) -> None:
        self.log.say(text)

    def row(self, row: Mapping[str, Any], planned_epochs: int) -> None:
        size, metric = size_text(row["size"], row.get("image_size")), row.get("validation_metric")
        own = "" if metric is None else f"metric {metric:.4g}  "
        self.log.say(
            f"size {size:>3}  epoch {row['epoch']:>2}/{planned_epochs or '?'}  loss {row['train_loss']:.3f}  "
            f"train {row['train_accuracy']:6.1%}  validation {row['validation_accuracy']:6.1%}  {own}"
            f"{row['images_per_second']:>6.0f} images/s  {row['total_seconds']:>5.0f} s"
        )


class Listeners(Listener):
    """All listeners of a training, called in order: the metrics file if there is one, the others, the screen.

    The others are optional: the training goes on without one that fails.
    """

    def __init__(self, log: Log, metrics: Path | None = None, others: Sequence[Listener] = ()):
        self.log, self.metrics, self.others = log, metrics, others
        self.all = [*([RunFiles(metrics)] if metrics else []), *others, Screen(log)]

    def say(self, text: str) -> None:
        self._call("say", text)

    def keep_rows(self, num: int) -> None:
        """Keep the first ``num`` rows of the metrics file and discard the rest."""
        rows, level = read_metrics(self.metrics)[:num] if self.metrics else [], 0
        for row in rows:  # older versions numbered the levels from the finest
            level += row.get("epoch") == 1
            row["level"] = level
        self.restart(rows)

    def restart(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._call("restart", rows)

    def row(self, row: Mapping[str, Any], planned_epochs: int) -> None:
        self._call("row", row, planned_epochs)

    def level(self, index: int, size: int, snapshot: Snapshot) -> None:
        self._call("level", index, size, snapshot)

    def tested(self, confusion: Tensor) -> None:
        self._call("tested", confusion)

    def close(self) -> None:
        self._call("close")

    def _call(self, event: str, *given: Any) -> None:
        """Tell all listeners of an event; one that is no part of the record and fails is left out from then on."""
        for each in list(self.all):
            try:
                getattr(each, event)(*given)
            except Exception as error:  # it may write by a library that can fail in any way
                if each not in self.others:
                    raise
                self.all.remove(each)
                self.log.say(f"note: {each.name} is not written any more: {brief(error)}")
