"""``multipde convert``"""

from dataclasses import dataclass
from pathlib import Path

from multipde.cli.options import Checkpoint, DataOptions, MethodName


@dataclass(frozen=True)
class Convert(DataOptions):
    """Move a trained network to another image size and write it as a new checkpoint.

    With data at hand (the run's own, or --data) BatchNorm is measured anew at the new size, and accuracies are told.
    """

    checkpoint: Checkpoint
    """Directory written by `save`, or a run directory."""
    size: int | None = None
    """New image side in pixels. Left out: the size stays (to change the steps)."""
    method: MethodName = "copy"
    """How stencils move: copy, rediscretize (β kept), galerkin."""
    steps: int | None = None
    """New number of time steps per block; the final time stays and the controls are interpolated."""
    out: Path | None = None
    """New directory for the converted checkpoint."""
    quiet: bool = False
    """Say nothing."""

    def run_command(self) -> None:
        from multipde.training.log import Log
        from multipde.training.move import convert_checkpoint

        convert_checkpoint(
            self.checkpoint,
            self.out,
            size=self.size,
            method=self.method,
            steps=self.steps,
            data=self.of(self.checkpoint),
            need_data=self.data is not None or self.root is not None,
            log=Log(quiet=self.quiet),
        )
