"""What a training writes down and shows while it goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from multipde.runtime.console import Log
from multipde.storage.files import write_file
from multipde.storage.rows import append_row, read_metrics
from multipde.training.snapshot import Snapshot, write_snapshot
from multipde.training.tensorboard import Board


class TrainingLog(Log):
    """Writes metrics.jsonl and talks to the user.

    Args:
        file: metrics file, appended to; None writes none.
        quiet: say nothing.
        board: shows the same in TensorBoard.
    """

    def __init__(
        self,
        file: Path | None = None,
        quiet: bool = False,
        console: Console | None = None,
        board: Board | None = None,
    ):
        super().__init__(quiet, console)
        self.file, self.board = file, board

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append one line to the metrics file."""
        if self.file is not None:
            append_row(self.file, row)
        if self.board is not None:
            self.board.row(row)

    def snapshot(self, index: int, snapshot: Snapshot) -> None:
        """Keep what the index-th level has come to beside the metrics file."""
        if self.file is not None:
            write_snapshot(self.file.parent, index, snapshot)
        if self.board is not None:
            self.board.snapshot(snapshot)

    def keep_rows(self, num: int) -> None:
        """Only the first so many lines of the metrics file, torn ones gone."""
        if self.file is not None:
            rows = read_metrics(self.file)[:num]
            write_file(self.file, "".join(json.dumps(row) + "\n" for row in rows).encode())
            if self.board is not None:
                self.board.restart(rows)

    def tested(self, confusion: Tensor) -> None:
        """The training is over and its network tested, see `Metrics`."""
        if self.board is not None:
            self.board.tested(confusion)

    def close(self) -> None:
        """Whatever is held back is written."""
        if self.board is not None:
            self.board.close()
