"""A run in TensorBoard: scalars of every epoch, stencils of the opening and confusions of every level."""

import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from multipde.evaluation.pictures import confusion_figure, stencil_figure
from multipde.networks.model_spec import ModelSpec
from multipde.training.listeners import Listener
from multipde.training.snapshot import Snapshot, read_snapshots

FOLDER = "tensorboard"

SCALARS = {
    "accuracy/train": "train_accuracy",
    "accuracy/validation": "validation_accuracy",
    "loss/train": "train_loss",
    "loss/validation": "validation_loss",
    "speed/images_per_second": "images_per_second",
    "level/size": "size",
}
"""Tags and what they show of a row of the metrics file; those of accuracy and loss also against the work."""


class Board(Listener):
    """Event files in RUN/tensorboard.

    The step of ``accuracy/...``, ``loss/...`` and of pictures is the number of epochs done on all levels, that of
    ``work/...`` the GFLOPs spent; the wall time is that of training, interruptions left out.

    Args:
        run_dir: of the run; nothing is written before the first row.
        spec: of the network.
        sizes: of the levels of the schedule.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self, run_dir: Path, spec: ModelSpec, sizes: Sequence[int]):
        if find_spec("tensorboard") is None:
            raise ValueError("tensorboard must be installed to be written, got none; type pip install tensorboard")
        self.run_dir, self.spec, self.sizes = run_dir, spec, sizes
        self.num_rows = 0
        self._writer: Any = None
        self._began = time.time()

    @property
    def writer(self) -> Any:
        """The writer of the event file, made when it is first needed."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.run_dir / FOLDER), purge_step=0)  # readers forget what was there
        return self._writer

    def row(self, row: Mapping[str, Any], planned_epochs: int = 0) -> None:
        """One more row of the metrics file."""
        self.num_rows += 1
        gflops, at = round(row["total_flops"] / 1e9), self._began + row["total_seconds"]
        for tag, key in SCALARS.items():
            self.writer.add_scalar(tag, row[key], self.num_rows, at)
            if tag.startswith(("accuracy", "loss")):
                self.writer.add_scalar(f"work/{tag.replace('/', '_')}", row[key], gflops, at)
        self.writer.flush()

    def level(self, index: int, size: int, snapshot: Snapshot) -> None:
        """A level is done."""
        self.writer.add_figure("opening/stencils", stencil_figure(snapshot.stencils), snapshot.rows)
        self._confusion("validation", snapshot.confusion, snapshot.rows)

    def tested(self, confusion: Tensor) -> None:
        """The training is over."""
        self._confusion("test", confusion, self.num_rows)

    def restart(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show these rows, and the levels that were done by then, instead of what is there."""
        self.close()
        shutil.rmtree(self.run_dir / FOLDER, ignore_errors=True)
        self.num_rows, self._began = 0, time.time() - (rows[-1]["total_seconds"] if rows else 0.0)
        for row in rows:
            self.row(row)
        for index, snapshot in read_snapshots(self.run_dir, self.spec, self.sizes).items():
            if snapshot.rows <= len(rows):
                self.level(index, self.sizes[index], snapshot)

    def close(self) -> None:
        """Write what is held back."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _confusion(self, part: str, confusion: Tensor, step: int) -> None:
        self.writer.add_figure(f"confusion/{part}", confusion_figure(confusion, self.spec.class_names), step)
        self.writer.flush()
