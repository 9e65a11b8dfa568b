"""``multipde inspect``"""

from dataclasses import dataclass

from multipde.cli.options import Checkpoint


@dataclass(frozen=True)
class Inspect:
    """Show the network of a checkpoint: blocks, weights, mesh sizes, FLOPs, and the derivatives in its stencils."""

    checkpoint: Checkpoint
    """Directory written by `save`, or a run directory."""
    arch: str | None = None
    """For a checkpoint of a network from an import path: that path again, package.module:function."""
    physical: bool = False
    """Show coefficients on the unit square instead of in units of each layer's mesh size."""

    json: bool = False
    """Print one line of JSON instead of text and a table."""

    def run_command(self) -> None:
        from multipde.reports.inspection import inspect_network
        from multipde.runtime.console import Log
        from multipde.storage.stored_network import load

        inspect_network(load(self.checkpoint, self.arch), self.physical, Log(needed=True), as_json=self.json)
