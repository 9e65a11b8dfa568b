"""``multipde report``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from multipde.cli.options import DataOptions


@dataclass(frozen=True)
class Report(DataOptions):
    """Write what a finished run has done as one HTML page that needs no network."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory."""
    arch: str | None = None
    """The network again, package.module:function, where the run is of one from an import path."""
    out: Path | None = None
    """File to write. Left out: report.html in the run."""
    num_images: int = 10_000
    """At most so many test images, drawn at random but always the same."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 or mps."""

    def run_command(self) -> None:
        from multipde.reports.page import report
        from multipde.runtime.console import Log

        is_given = self.data is not None or any(self.options().values())
        data, options = (self.of(self.run) if is_given else None) or (None, {})
        written = report(
            self.run,
            self.out,
            data=data,
            model=self.arch,
            data_options=options,
            num_images=self.num_images,
            device=self.device,
        )
        Log().say(f"written to {written}")
