"""``multipde inspect``"""

from dataclasses import dataclass

from multipde.cli.options import Checkpoint


@dataclass(frozen=True)
class Inspect:
    """Show what a checkpoint is: blocks, weights, mesh sizes, FLOPs, and its stencils as derivatives."""

    checkpoint: Checkpoint
    """Directory written by `save`, or a run directory."""
    arch: str | None = None
    """The network again, package.module:function, where the checkpoint is of one from an import path."""
    physical: bool = False
    """Coefficients on the unit square instead of in units of each layer's mesh."""

    def run_command(self) -> None:
        from multipde.reports.inspection import inspect_network
        from multipde.runtime.console import Log
        from multipde.storage.stored_network import load

        inspect_network(load(self.checkpoint, self.arch), self.physical, Log())
