"""TensorBoard files of a run: scalars of every epoch, stencils and confusion matrix of every level."""

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from multipde.evaluation.figure_style import figure_style
from multipde.evaluation.pictures import confusion_figure, stencil_figure
from multipde.networks.model_spec import ModelSpec
from multipde.storage.files import write_file
from multipde.storage.lock import check_lock
from multipde.training.listeners import Listener
from multipde.training.snapshot import Snapshot, read_snapshots

FOLDER, OURS = "tensorboard", ".multipde"
"""The folder of the event files, and the file by which a run knows that it has made the folder."""

SCALARS = {
    "accuracy/train": "train_accuracy",
    "accuracy/validation": "validation_accuracy",
    "loss/train": "train_loss",
    "loss/validation": "validation_loss",
    "speed/images_per_second": "images_per_second",
    "level/size": "size",
}
"""Tags, and the entries of a metrics row that they show; accuracy and loss are shown against the work, too."""


class Board(Listener):
    """Writes event files into RUN/tensorboard from the first row on.

    Where something else has this name, which the run has not made, the folder is RUN/tensorboard-2, and so on.

    The step of ``accuracy/...``, ``loss/...`` and figures is the number of epochs on all levels, that of ``work/...``
    the GFLOPs spent. The wall time is that of training, without interruptions. ``sizes`` are those of the levels.
    """

    name = "TensorBoard"

    def __init__(self, run_dir: Path, spec: ModelSpec, sizes: Sequence[int]):
        self.run_dir, self.spec, self.sizes = run_dir, spec, sizes
        self.num_rows = 0
        self._writer: Any = None
        self._began = time.time()

    @property
    def writer(self) -> Any:
        """The writer of the event file, created at its first use."""
        check_lock(self.run_dir / FOLDER)
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder()), purge_step=0)  # readers discard earlier events
        return self._writer

    def _folder(self) -> Path:
        """A folder that this run has made, without event files."""
        for number in itertools.count(1):
            folder = self.run_dir / (FOLDER if number == 1 else f"{FOLDER}-{number}")
            if not os.path.lexists(folder):
                os.mkdir(folder)
                write_file(folder / OURS, b"The event files in this folder are replaced when the run is resumed.\n")
                return folder
            if not folder.is_symlink() and (folder / OURS).is_file():
                break
        for events in folder.glob("events.out.tfevents.*"):
            events.unlink()
        return folder

    def row(self, row: Mapping[str, Any], planned_epochs: int = 0) -> None:
        self.num_rows += 1
        gflops, at = round(row["total_flops"] / 1e9), self._began + row["total_seconds"]
        for tag, key in SCALARS.items():
            self.writer.add_scalar(tag, row[key], self.num_rows, at)
            if tag.startswith(("accuracy", "loss")):
                self.writer.add_scalar(f"work/{tag.replace('/', '_')}", row[key], gflops, at)
        self.writer.flush()

    @figure_style()
    def level(self, index: int, size: int, snapshot: Snapshot) -> None:
        self.writer.add_figure("opening/stencils", stencil_figure(snapshot.stencils), snapshot.rows)
        self._confusion("validation", snapshot.confusion, snapshot.rows)

    @figure_style()
    def tested(self, confusion: Tensor) -> None:
        self._confusion("test", confusion, self.num_rows)

    def restart(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace the event files by those of these rows and of the levels that were finished by then."""
        self.close()
        self.num_rows, self._began = 0, time.time() - (rows[-1]["total_seconds"] if rows else 0.0)
        for row in rows:
            self.row(row)
        for index, snapshot in read_snapshots(self.run_dir, self.spec, self.sizes).items():
            if snapshot.rows <= len(rows):
                self.level(index, self.sizes[index], snapshot)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _confusion(self, part: str, confusion: Tensor, step: int) -> None:
        self.writer.add_figure(f"confusion/{part}", confusion_figure(confusion, self.spec.class_names), step)
        self.writer.flush()
