"""``multipde report``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from multipde.cli.options import DataOptions


@dataclass(frozen=True)
class Report(DataOptions):
    """Write a report of a finished run as one HTML page, which can be read without an internet connection."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory."""
    arch: str | None = None
    """For a run of a network from an import path: that path again, package.module:function."""
    out: Path | None = None
    """File to write. Left out: report.html in the run directory."""
    num_images: int = 10_000
    """Largest number of test images to use, a fixed random subset."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one."""

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
